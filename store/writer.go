package store

// writer runs all writes on one goroutine.
type writer struct{}
