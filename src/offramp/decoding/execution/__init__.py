"""Executions: documents decoded freely with a policy, each token judged, kept on disk, and certified on."""
