"""HTTP at the rim: bytes to requests, and answers to bytes."""
