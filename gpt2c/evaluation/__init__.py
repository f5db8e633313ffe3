"""How good a model is: HellaSwag, the tasks of EleutherAI's lm-eval, and the field's known values beside the run's."""
