"""`gpt2c serve`; its fields are its flags."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from gpt2c.chat.template import template_of
from gpt2c.commands.flags import Weights, for_weights
from gpt2c.errors import UserError
from gpt2c.load import load_model
from gpt2c.translator import Translator

if TYPE_CHECKING:
    from gpt2c.serve.app import Site


@dataclass(frozen=True)
class Serve:
    """Show what a model writes, and why, on a local web page; with an API as OpenAI's."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run (its best checkpoint is taken), a checkpoint, any GPT-2 in Hugging Face's format or on its hub, or a
    translator's folder (python/translate.py)."""
    port: int = 8000
    """Of 127.0.0.1, the only address it listens on; 0 takes a free one."""
    weights: Weights = "fp32"

    def run(self) -> int:
        """Serve until Ctrl-C."""
        try:
            from gpt2c.serve.app import HOST, Server, listen
        except ModuleNotFoundError as error:
            raise UserError(
                f'gpt2c serve needs the packages fastapi and uvicorn: pip install "gpt2c[serve]" ({error})'
            ) from error
        with listen(self.port) as listener, self._site() as site:
            try:
                print(f"{site.name}: http://{HOST}:{listener.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
                Server(site).run(sockets=[listener])
            except KeyboardInterrupt:  # raised once more when the server has ended
                pass
        return 0

    @contextmanager
    def _site(self) -> Iterator[Site]:
        """What the folder holds, ready to be served."""
        from gpt2c.serve.app import gpt2_site, translator_site
        from gpt2c.serve.engine import Engine
        from gpt2c.serve.service import Service
        from gpt2c.serve.translation import Translations

        path = Path(self.model)
        name = os.path.basename(os.path.abspath(path)) or "model"  # of "." and "..", too
        if Translator.is_in(path):
            if self.weights != "fp32":
                raise UserError(f"--weights {self.weights} is for GPT-2; {path} is an encoder-decoder, small as it is")
            yield translator_site(Translations(name, Translator.load(path)))
            return
        model, tokenizer, _ = load_model(self.model)
        try:
            engine = Engine(for_weights(model, self.weights), self.weights)
        except ValueError as error:  # weights that are not possible for the model
            raise UserError(str(error)) from error
        engine.start()
        try:
            yield gpt2_site(Service(name, model, tokenizer, template_of(tokenizer), engine))
        finally:
            engine.stop()
