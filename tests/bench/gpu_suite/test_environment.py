"""What the parts' processes are told by their environment."""

from bench.gpu_suite import environment
from bench.gpu_suite.plan import BY_NAME


def toolkit(folder):
    (folder / "bin").mkdir(parents=True)
    ptxas = folder / "bin" / "ptxas"
    ptxas.write_text("")
    ptxas.chmod(0o755)
    return folder


def test_a_toolkit_that_holds_a_compiler_is_found(tmp_path):
    (tmp_path / "empty").mkdir()
    other, named = toolkit(tmp_path / "other"), toolkit(tmp_path / "named")
    on_path = {"PATH": str(other / "bin")}
    assert environment.cuda_root(on_path) == other
    assert environment.cuda_root(on_path | {"CUDA_HOME": str(named)}) == named
    assert environment.cuda_root(on_path | {"CUDA_ROOT": str(tmp_path / "empty")}) == other


def test_only_beside_pytorch_memory_is_taken_as_it_is_needed(tmp_path):
    for name, part in BY_NAME.items():
        env = environment.of_part(part, tmp_path, False, {"PATH": ""})
        assert (env.get("XLA_PYTHON_CLIENT_PREALLOCATE") == "false") == name.startswith("torch-")
        assert env["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "cache")
        assert env["HF_HUB_OFFLINE"] == "1"


def test_a_tiny_run_is_on_the_cpu_with_the_users_cache(tmp_path):
    env = environment.of_part(BY_NAME["ceilings"], tmp_path, True, {"JAX_COMPILATION_CACHE_DIR": "mine"})
    assert env["JAX_PLATFORMS"] == "cpu" and env["JAX_COMPILATION_CACHE_DIR"] == "mine"
    env = environment.of_part(BY_NAME["ceilings"], tmp_path, True, {})
    assert env["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "cache"), "parts share what they compile"


def test_of_an_earlier_call_only_what_was_compiled_stays(tmp_path):
    for name in ("cache", "torch", "launches"):
        (tmp_path / "work" / name).mkdir(parents=True)
    (tmp_path / "work" / "results.json").write_text("{}")
    environment.clear(tmp_path / "work")
    assert {file.name for file in (tmp_path / "work").iterdir()} == {"cache", "torch"}
    environment.clear(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
