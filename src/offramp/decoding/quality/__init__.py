"""Quality of what is generated: the full model as a judge."""
