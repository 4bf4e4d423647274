"""`sparsity policy`: read, check, change, roll out and stop policies."""

import typer

from sparsity_cli.policies import documents, edit, folders, history, keys, kill, lint, rollout, simulate
from sparsity_cli.requests.explain import explain

app = typer.Typer(help="Read, check, change, roll out and stop risk policies.", no_args_is_help=True)
app.command("list")(documents.list_policies)
app.command("get")(documents.get)
app.command("edit")(edit.edit)
app.command("apply")(documents.apply)
app.command("delete")(documents.delete)
app.command("diff")(folders.diff)
app.command("lint")(lint.lint)
app.command("explain")(explain)
app.command("simulate")(simulate.simulate)
app.command("replay")(simulate.replay)
app.command("history")(history.history)
app.command("rollback")(history.rollback)
app.command("audit")(history.audit)
app.add_typer(rollout.app, name="rollout")
app.command("kill")(kill.kill)
app.command("unkill")(kill.unkill)
app.command("overrides")(kill.overrides)
app.command("export")(folders.export)
app.command("import")(folders.import_)
app.command("new-key")(keys.new_key)
