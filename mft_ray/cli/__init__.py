"""The command `mft-ray`: one file a sub-command. None imports Ray, torch or transformers before it must."""
