// Package guest is the protocol between the server and the agent inside a machine, both ends of it:
// the agent runs processes, moves files and forwards signals; everything else lives on the host.
//
// What the agent sends is hostile input: every frame is bounded, and the client fails rather than believes.
package guest

import (
	"io"
	"time"
)

// Cmd is a process to run in the guest.
type Cmd struct {
	Args  []string      // program and arguments; the program is looked up in the Env's PATH
	Dir   string        // working directory; "" is /
	Env   []string      // the whole environment, KEY=VALUE; the agent adds nothing
	User  string        // user to run as; "" is the agent's own. Name, or uid:gid
	Stdin io.Reader     // nil: /dev/null
	Grace time.Duration // between SIGINT, SIGTERM and SIGKILL to the process group when the context ends; 0: SIGKILL at once
	// Stderr gets standard error apart from out; nil: both go to out in the order they were written.
	Stderr io.Writer
}

// Exit is how a process ended.
type Exit struct {
	Code     int           // exit status; 128+n where signal n ended it; -1 where it never started
	Signal   string        // name of the signal that ended it: "SIGKILL", or ""
	Started  bool          // false: the program could not be started, Message says why
	Message  string        // for a person: "bash: no such file or directory"
	Duration time.Duration // on the guest's monotonic clock
}

// Success reports whether the process ran and ended with status 0.
func (e Exit) Success() bool { return e.Started && e.Code == 0 && e.Signal == "" }

// Hello is what the agent says of itself when a stream begins.
type Hello struct {
	Protocol int       `json:"protocol"` // Protocol of the agent
	Version  string    `json:"version"`  // of its build
	Kernel   string    `json:"kernel"`   // uname -r
	Hostname string    `json:"hostname"`
	BootID   string    `json:"boot_id"`
	Clock    time.Time `json:"clock"`
	PID      int       `json:"pid"`
}
