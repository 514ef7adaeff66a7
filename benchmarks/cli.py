"""The benchmarks of ``mno bench``: a table, so that none is imported before it is asked for."""

# name -> ("module:command", help); None as long as only the name is settled
bench: dict[str, tuple[str | None, str]] = {
    "accuracy": ("benchmarks.equal_accuracy:bench_accuracy", "Surrogate and solver at equal accuracy."),
    "scan": ("benchmarks.scan:bench_scan", "The selective scan against the best torch form."),
    "forward": ("benchmarks.forward:bench_forward", "A surrogate against the reference solver."),
    "export": ("benchmarks.export:bench_export", "Exported files against their surrogate."),
    "rollout": ("benchmarks.rollout:bench_rollout", "An evolution model against the reference solver."),
    "serve": ("benchmarks.serving.command:bench_serve", "The service and its peers under load."),
    "certificate": ("benchmarks.certificate:bench_certificate", "Darcy's guarantees against the truth."),
    "solver": ("benchmarks.solver:bench_solver", "The reference solver and the error bound."),
    "trust": ("benchmarks.trust:bench_trust", "Calibrated errors and novelty flags, on fresh samples."),
}
