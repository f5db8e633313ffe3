"""The commands of `gpt2c`, a file each."""

from gpt2c.bench.command import Bench
from gpt2c.commands.chat import Chat
from gpt2c.commands.eval import Eval
from gpt2c.commands.export import Export
from gpt2c.commands.import_ import Import
from gpt2c.commands.info import Info
from gpt2c.commands.plan import Plan
from gpt2c.commands.prepare import Prepare
from gpt2c.commands.report import Report
from gpt2c.commands.sample import Sample
from gpt2c.commands.serve import Serve
from gpt2c.commands.sft import Sft
from gpt2c.commands.tokenizer import Tokenizer
from gpt2c.commands.train import Train

# In the order of --help.
COMMANDS = {
    "prepare": Prepare,
    "train": Train,
    "sft": Sft,
    "plan": Plan,
    "sample": Sample,
    "chat": Chat,
    "serve": Serve,
    "eval": Eval,
    "tokenizer": Tokenizer,
    "export": Export,
    "import": Import,
    "info": Info,
    "report": Report,
    "bench": Bench,
}
