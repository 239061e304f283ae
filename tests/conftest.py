"""Makes `packets`, `reference` and `rig` importable from every test folder."""
