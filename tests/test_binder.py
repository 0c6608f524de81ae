"""Binder: it finds what it needs, and what it runs at the end does what it should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.sign import NotebookNotary, SQLiteSignatureStore

ROOT = Path(__file__).resolve().parent.parent


def test_binder_accepts_the_repository():
    """Without Docker, so that no image is made: the recipe for it is printed."""
    pytest.importorskip("repo2docker", reason="pip install jupyter-repo2docker")
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    assert "conda environment for python=3.11" in said
    copied, installed, finished = map(
        said.index, ("COPY --chown=0:0 src/", '--file "environment.yml"', "RUN ./postBuild")
    )
    assert copied < installed < finished, "environment.yml installs the package itself, so it has to be there"


def test_post_build_trusts_the_notebooks_and_opens_texts_as_notebooks(tmp_path):
    assert os.access(ROOT / "postBuild", os.X_OK)
    folders = {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTER_DATA_DIR": str(tmp_path / "data")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run([ROOT / "postBuild"], cwd=ROOT, env=os.environ | folders | {"PATH": path}, check=True)

    settings = json.loads((tmp_path / "config/labconfig/default_setting_overrides.json").read_text())
    assert settings["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"]["python"] == "Jupytext Notebook"
    database = SQLiteSignatureStore(db_file=str(tmp_path / "data/nbsignatures.db"))
    notary = NotebookNotary(data_dir=str(tmp_path / "data"), store_factory=lambda: database)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert notary.check_signature(nbformat.read(path, as_version=4)), path.name
    database.close()
