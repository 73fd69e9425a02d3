package store

// dialect is what differs between databases.
type dialect struct{}
