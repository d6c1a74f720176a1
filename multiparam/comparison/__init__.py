"""Do the backends agree, and where do they first part? Do models? The main job: ``multiparam compare``."""
