"""gRPC at the rim: messages to requests, and answers to messages."""
