"""Quality of what is generated: free-running agreement and task accuracy."""
