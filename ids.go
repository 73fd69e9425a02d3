package tgr

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
)

// DeliveryID is GitHub's X-GitHub-Delivery GUID, or one of ours for a run that no webhook asked for.
type DeliveryID string

// RunID numbers a workflow run. It is what github.run_id shows; it never repeats within one database.
type RunID int64

// JobID numbers one job of one attempt. It is a row of ours, never a name from a workflow.
type JobID int64

// String returns the id in decimal.
func (id RunID) String() string { return strconv.FormatInt(int64(id), 10) }

// String returns the id in decimal.
func (id JobID) String() string { return strconv.FormatInt(int64(id), 10) }

// NewToken returns 128 random bits in hexadecimal: a fencing token, a machine id, a delivery of our own.
func NewToken() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails (crypto/rand, since Go 1.24)
	return hex.EncodeToString(b)
}
