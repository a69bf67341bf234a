"""The drawing behind `toy_landmarks`: canvas, ornaments, parts and styles make a facade; street and scenes a photo."""
