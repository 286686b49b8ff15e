"Images: decoding, listing, splitting, loading; collections that are drawn"
