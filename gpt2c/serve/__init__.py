"""`gpt2c serve`: a model behind a local web page and an API as OpenAI's."""
