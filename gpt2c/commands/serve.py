"""`gpt2c serve`; its fields are its flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpt2c.chat.template import template_of
from gpt2c.commands.flags import ModelName, Weights
from gpt2c.errors import UserError
from gpt2c.load import load_model


@dataclass(frozen=True)
class Serve:
    """Show what a model writes, and why, on a local web page; with an API as OpenAI's."""

    model: ModelName
    port: int = 8000
    """Of 127.0.0.1, the only address it listens on; 0 takes a free one."""
    weights: Weights = "fp32"

    def run(self) -> int:
        """Serve until Ctrl-C."""
        try:
            from gpt2c.serve.app import HOST, Server, create_app, listen
            from gpt2c.serve.engine import Engine
            from gpt2c.serve.service import Service
        except ModuleNotFoundError as error:
            raise UserError(
                f'gpt2c serve needs the packages fastapi and uvicorn: pip install "gpt2c[serve]" ({error})'
            ) from error
        with listen(self.port) as listener:
            model, tokenizer, _ = load_model(self.model)
            try:
                engine = Engine(model, self.weights)
            except ValueError as error:  # weights that are not possible for the model
                raise UserError(str(error)) from error
            service = Service(Path(self.model).name, model, tokenizer, template_of(tokenizer), engine)
            engine.start()
            try:
                print(f"{service.name}: http://{HOST}:{listener.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
                Server(create_app(service), engine).run(sockets=[listener])
            except KeyboardInterrupt:  # raised once more when the server has ended
                pass
            finally:
                engine.stop()
        return 0
