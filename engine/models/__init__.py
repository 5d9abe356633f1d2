"""Model families: one small file each, behind `engine.models.family.Family`."""
