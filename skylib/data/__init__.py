"""From files of any survey to flat batches on the device."""
