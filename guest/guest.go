// Package guest is the protocol between the server and the agent inside a machine, both ends of it:
// the agent runs processes, moves files and forwards signals; everything else lives on the host.
//
// One byte stream carries it. After a handshake that finds its place on a stream with anything on it, each
// operation has a stream of its own on a multiplexer, and costs one round trip.
//
// What the agent sends is hostile input: every frame is bounded, and the client fails rather than believes.
package guest

import (
	"fmt"
	"io"
	"log/slog"
	"time"
)

// Cmd is a process to run in the guest.
type Cmd struct {
	// ID names the process for Signal and Attach, for as long as it runs and until the exit of a later one has been
	// delivered; "": a random one. At most 128 bytes.
	ID    string
	Args  []string      // program and arguments; the program is looked up in the Env's PATH
	Dir   string        // working directory; "" is /
	Env   []string      // the whole environment, KEY=VALUE; the agent adds nothing
	User  string        // user to run as; "" is the agent's own. Name, uid, or uid:gid; HOME is as Env says
	Stdin io.Reader     // nil: /dev/null. A Read that hangs outlives Exec
	Grace time.Duration // when the context ends: SIGINT, 3/4 of it, SIGTERM, 1/4 of it, SIGKILL; 0: SIGKILL at once
	// Stderr gets standard error apart from out; nil: both go to out in the order they were written.
	Stderr io.Writer
	// TTY, if not nil, gives the process a terminal of that size in place of pipes: its output is out's, and its
	// input ends with the terminal's end of input. Stderr must be nil. An agent from before terminals ignores it.
	TTY *WindowSize
}

// Format implements fmt.Formatter: whatever formats a Cmd shows none of its environment, which holds secrets, nor of its
// arguments.
func (Cmd) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "***") }

// LogValue implements slog.LogValuer likewise.
func (Cmd) LogValue() slog.Value { return slog.StringValue("***") }

// WindowSize is how large a terminal is, in characters.
type WindowSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Exit is how a process ended.
type Exit struct {
	Code     int           // exit status; 128+n where signal n ended it; 127 not found and 126 not executable, never started
	Signal   string        // name of the signal that ended it: "SIGKILL", or ""
	Started  bool          // false: the program could not be started, Message says why
	Message  string        // for a person: "bash: no such file or directory"
	Duration time.Duration // on the guest's monotonic clock
	// Shortage is what the machine has run out of since the last process that failed, if this one has.
	Shortage Shortage
	// CPU is the processor time of the process and of those that it has waited for; 0: unknown.
	CPU time.Duration
	// Memory is the most that was seen in use while the process ran, in bytes, by all that runs in the machine and without
	// the caches that its kernel would give back. 0: not measured, because the process ran too shortly, or because the
	// agent has no machine to itself and no control group of its own.
	Memory int64
}

// Shortage is what a machine had too little of; "" is nothing.
type Shortage string

// The shortages that an agent with a machine to itself finds out about.
const (
	OutOfMemory    Shortage = "memory"    // the machine's kernel has killed a process for want of it
	OutOfProcesses Shortage = "processes" // the job's are as many as it may have; when it asks for more and more, they are ended
	OutOfDisk      Shortage = "disk"      // nothing can be written to the machine's disk
	OutOfFiles     Shortage = "files"     // no file can be made on the machine's disk: it has too many
)

// String is the shortage in plain words, to be put behind a failure; "" for none.
func (s Shortage) String() string {
	switch s {
	case OutOfMemory:
		return "the machine ran out of memory, and its kernel killed a process"
	case OutOfProcesses:
		return "the job started more processes than its machine has room for"
	case OutOfDisk:
		return "the machine's disk is full"
	case OutOfFiles:
		return "the machine's disk has as many files as it can have (inodes)"
	}
	return ""
}

// Known is s, or nothing where a hostile agent says what there is not.
func (s Shortage) Known() Shortage {
	if s.String() == "" {
		return ""
	}
	return s
}

// Bounds of what is believed of an agent's word on what a process took.
const (
	maxCPU    = 1 << 53 // nanoseconds: 104 days
	maxMemory = 1 << 46 // bytes
)

// Bounded returns e with no more said of what the process took than can be true of any machine: it is the agent's word.
func (e Exit) Bounded() Exit {
	e.CPU, e.Memory = min(max(e.CPU, 0), maxCPU), min(max(e.Memory, 0), maxMemory)
	return e
}

// Success reports whether the process ran and ended with status 0.
func (e Exit) Success() bool { return e.Started && e.Code == 0 && e.Signal == "" }

// Hello is what the agent says of itself when a stream begins: how it was when the stream before ended.
type Hello struct {
	Protocol int    `json:"protocol"` // Protocol of the agent
	Version  string `json:"version"`  // of its build
	Kernel   string `json:"kernel"`   // uname -r
	Hostname string `json:"hostname"`
	BootID   string `json:"boot_id"`
	PID      int    `json:"pid"`
	// Scratch, if not empty, is a folder in memory where who jobs run as may write: for small files, of which a disk costs
	// more than they do. It is absolute, and clean.
	Scratch string `json:"scratch,omitempty"`
}

// Identity makes one of many clones of a machine this one. Its zero fields change nothing; where all are zero, the machine
// is asked for its clock.
type Identity struct {
	Hostname string    `json:"hostname,omitempty"`
	Time     time.Time `json:"time,omitzero"`     // the host's clock
	Entropy  []byte    `json:"entropy,omitempty"` // for the kernel's generator, 32 to 4096 bytes
	// Shift is what the machine's clock is put on by; Prepare finds out by itself what it has to be.
	Shift time.Duration `json:"shift,omitempty"`
}
