package vm

import (
	"context"
	"errors"
	"time"
)

// Snapshotter is a VM that can be brought back to what it was. It is found by type assertion.
type Snapshotter interface {
	// Snapshot keeps what the machine is at this moment: its memory with all processes, its devices and its disk.
	// The machine stands still meanwhile and then goes on; its stream stays open. name is for people, and may be
	// empty. A machine has room for a few snapshots: the oldest goes when there would be one too many.
	Snapshot(ctx context.Context, name string) (Snapshot, error)
	// Rollback makes the machine what it was when the snapshot was taken; ErrNoSnapshot if it has none of that ID.
	// The snapshot stays, and so do the others. The stream ends: dial again. Processes that ran at the time of the
	// snapshot run on, and can be attached to; the agent knows of none that were started since. Clock and entropy
	// are those of that time, so whoever rolls back prepares the machine before it goes on. After an error the
	// machine is as it was, or it has ended: Wait tells.
	Rollback(ctx context.Context, id string) error
	// Snapshots lists what Rollback can go back to, the oldest first.
	Snapshots() []Snapshot
}

// Snapshot describes what a machine can be rolled back to. It is freed with its machine.
type Snapshot struct {
	ID     string        // unique among the machine's snapshots; letters, digits and '-'
	Name   string        // the caller's
	Taken  time.Time     // by the host's clock
	Paused time.Duration // how long the machine stood still for it
	Bytes  int64         // that it takes on the host
}

// ErrNoSnapshot is Rollback's for an ID that the machine has no snapshot of, any more.
var ErrNoSnapshot = errors.New("the machine has no such snapshot")
