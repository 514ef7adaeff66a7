"""``python -m service`` is ``mno serve``."""

from service.cli import serve

if __name__ == "__main__":
    serve()
