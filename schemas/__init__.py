"""What a spec may say: one JSON schema per action, a manifest, and the readers of both. Knows no model."""
