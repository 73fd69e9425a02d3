// Package vm starts and frees the machines that jobs run on. It knows nothing of CI and nothing of the
// protocol that is spoken with the agent inside: a machine is something to dial, to wait for and to close.
package vm

import (
	"context"
	"fmt"
	"net"
	"time"
)

// Provider starts machines of one kind. It is safe for concurrent use.
type Provider interface {
	// Start makes a machine and returns when it may be dialled, or when ctx ends: then nothing of it is left.
	// A machine that did not come up is a *BootError; a host that could not make one is an *InfraError.
	Start(ctx context.Context, s Spec) (VM, error)
}

// VM is one machine. Its methods are safe for concurrent use.
type VM interface {
	// Dial opens the stream to the agent. There is one stream at a time: a second Dial ends the first.
	// The caller closes it.
	Dial(ctx context.Context) (net.Conn, error)
	// Wait returns nil when the machine powered off, a *BootError or *InfraError when it died otherwise,
	// or ctx's error.
	Wait(ctx context.Context) error
	// Close kills the machine and frees everything that it had on the host. It is idempotent.
	Close() error
}

// Infoer is a VM that can describe itself.
type Infoer interface{ Info() Info }

// Info describes a machine for logs, pages and errors.
type Info struct {
	ID        string        // the Spec's
	Isolation string        // "qemu (kvm)", "qemu (tcg)", "process", …
	PID       int           // of the process on the host that is the machine
	Boot      time.Duration // from Start to a machine that may be dialled
	Phases    []Phase       // of Boot, in their order; nil where they are not measured
	Console   string        // the last few KiB that it wrote to its console
}

// Phase is a part of what Start did.
type Phase struct {
	Name string        `json:"name"` // a word or two
	Took time.Duration `json:"took"`
}

// Spec says what machine to start.
type Spec struct {
	ID     string // unique on the host; letters, digits and '-', at most 64
	VCPUs  int    // 0: 1
	Memory int64  // bytes; 0: the provider's default
	Disk   int64  // bytes of writable disk; 0: the provider's default
}

// BootError is a machine that was started and did not come up, or died: its console says why.
type BootError struct {
	ID      string
	Console string // the last few KiB
	Err     error
}

// Error names the machine and the cause; the console is for the operator's log.
func (e *BootError) Error() string { return fmt.Sprintf("machine %s: %v", e.ID, e.Err) }

// Unwrap returns the cause.
func (e *BootError) Unwrap() error { return e.Err }

// InfraError is a host that could not make or keep a machine: no memory, a missing program, a full disk.
type InfraError struct {
	Op  string
	Err error
}

// Error names the operation and the cause.
func (e *InfraError) Error() string { return fmt.Sprintf("%s: %v", e.Op, e.Err) }

// Unwrap returns the cause.
func (e *InfraError) Unwrap() error { return e.Err }

// Yielder is a VM that can stand back. It is found by type assertion.
type Yielder interface {
	// Yield has the machine take only the processors' time that nobody else on the host wants, or no longer.
	Yield(back bool) error
}

// Pauser is a VM that can stand still. It is found by type assertion.
type Pauser interface {
	// Pause stops the machine's processors. Its memory stays, and its stream: who waits for the agent gives it up
	// after a while, so dial again after Resume, and prepare the machine, whose clock stood still too.
	Pause(ctx context.Context) error
	// Resume lets it go on.
	Resume(ctx context.Context) error
}
