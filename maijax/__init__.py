"""maijax: language-model research in JAX, from a laptop to a pod, one code path for every size."""

__version__ = "0.1.0"
