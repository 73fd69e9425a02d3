// Package vmapi is the VM management API, both ends of it: a server that gives out this host's machines over HTTP, and
// a client whose machines run jobs. It answers the calls of fcctl-web, which the original system was written against,
// in the shapes that its clients expect, and adds what they lacked: states with reasons and timings, streaming
// commands, files, leases and idempotency keys. The client also copes with a server that knows fcctl-web's calls alone.
package vmapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"
	"unicode/utf8"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// Bounds of what either end takes from the other.
const (
	maxRequest  = 8 << 20  // bytes of JSON in a request: Linux takes 2 MiB of arguments and environment
	maxAnswer   = 64 << 20 // bytes of JSON in an answer; two outputs of maxOutput in base64 or with escapes fit
	maxOutput   = 4 << 20  // bytes of each stream that /api/llm/execute returns; the rest is dropped, and said to be
	maxEvent    = 1 << 20  // bytes of one line of a stream of events
	maxLabel    = 128      // bytes of a name, an id, a key
	maxTimeout  = 24 * time.Hour
	execTimeout = 300 * time.Second // of a command that names none, as with the original's clients
)

// Health is the answer of GET /health.
type Health struct {
	Service   string    `json:"service"` // "fcctl-web" for the original server, "tgr-vmd" for ours
	Status    string    `json:"status"`  // "healthy"
	Timestamp time.Time `json:"timestamp"`
	Version   string    `json:"version,omitempty"`
	// Features are what goes beyond the original's calls; a server that names none is of the original kind.
	Features []string `json:"features,omitempty"`
}

// Features of a server.
const (
	FeatureExec   = "exec"   // streaming commands
	FeatureFiles  = "files"  // tar streams in and out
	FeatureLeases = "leases" //
	FeaturePorts  = "ports"  // connections out of a machine to who leased it
)

// CreateRequest is the body of POST /api/vms. Every field may be left out.
type CreateRequest struct {
	Name     string   `json:"name,omitempty"`    // for people
	VMName   string   `json:"vm_name,omitempty"` // the same; some clients of the original say this
	VMType   string   `json:"vm_type,omitempty"` // is repeated in answers
	Labels   []string `json:"labels,omitempty"`  // of the machine's kind, as in runs-on; none: the default machine
	VCPUs    int      `json:"vcpus,omitempty"`   // 0: the kind's
	MemoryMB int      `json:"memory_mb,omitempty"`
	// LeaseSeconds leases the machine at once; 0: it is not leased, and freed when nothing ran for an hour.
	LeaseSeconds int `json:"lease_seconds,omitempty"`
	// WaitSeconds has the answer wait until the machine is ready or has failed; 0: it is not waited for.
	WaitSeconds int `json:"wait_seconds,omitempty"`
}

// VM is a machine as the API shows it.
type VM struct {
	ID     string `json:"id"`   // "vm-" and 16 hex digits
	Name   string `json:"name"` // the request's, or the id
	Status string `json:"status"`
	// State is more exact than Status, which is in the words that the original's clients wait for.
	State     State           `json:"state,omitempty"`
	Reason    string          `json:"reason,omitempty"` // why it is stopping, gone or failed
	VMType    string          `json:"vm_type"`
	UserID    string          `json:"user_id,omitempty"` // of the token that made it
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
	Config    string          `json:"config,omitempty"` // JSON in a string, as the original had it: vcpus, memory_mb, vm_type
	Timings   []Timing        `json:"timings,omitempty"`
	Isolation string          `json:"isolation,omitempty"` // "qemu (tcg)", …
	Kernel    string          `json:"kernel,omitempty"`    // uname -r in the machine
	Place     *Place          `json:"place,omitempty"`
	Session   *vm.SessionInfo `json:"session,omitempty"`
	LeasedTo  *time.Time      `json:"leased_until,omitempty"`
}

// Timing is one phase of a machine's life. The last has no end yet.
type Timing struct {
	State      State     `json:"state"`
	Began      time.Time `json:"began_at"`
	DurationMS float64   `json:"duration_ms"` // so far, where it has not ended
}

// Place says where things are in a machine, for whoever runs jobs on it.
type Place struct {
	Home    string            `json:"home,omitempty"`    // "": /home/runner
	Tools   string            `json:"tools,omitempty"`   // "": /opt/hostedtoolcache
	Nodes   map[string]string `json:"nodes,omitempty"`   // "node20": path of node
	Env     map[string]string `json:"env,omitempty"`     // the machine's own environment
	User    string            `json:"user,omitempty"`    // that jobs run as; "": the agent's own
	Engines []string          `json:"engines,omitempty"` // container engines that jobs may use, if the machine has them
}

// List is the answer of GET /api/vms.
type List struct {
	User  string            `json:"user"`
	Total int               `json:"total"`
	Tiers map[string]string `json:"tiers"`
	Usage Usage             `json:"usage"`
	VMs   []VM              `json:"vms"` // the newest first; those that have ended stay for an hour
}

// Usage is how much of the host's room is taken.
type Usage struct {
	AtCapacity           bool            `json:"at_capacity"`
	CurrentVMs           int             `json:"current_vms"`
	MaxVMs               int             `json:"max_vms"`
	VMUsagePercent       float64         `json:"vm_usage_percent"`
	CurrentSessions      int             `json:"current_concurrent_sessions"`
	MaxSessions          int             `json:"max_concurrent_sessions"`
	SessionUsagePercent  float64         `json:"session_usage_percent"`
	MaxMemoryMB          int             `json:"max_memory_mb"`
	MaxStorageGB         int             `json:"max_storage_gb"`
	HasPersistentStorage bool            `json:"has_persistent_storage"` // false: a machine's disk goes with it
	Sessions             vm.SessionStats `json:"sessions"`
}

// ExecuteRequest is the body of POST /api/llm/execute.
type ExecuteRequest struct {
	AgentID        string         `json:"agent_id,omitempty"` // who asks; for the history
	Language       string         `json:"language"`           // bash, python or javascript
	Code           string         `json:"code"`
	VMID           string         `json:"vm_id,omitempty"`           // "": a machine for this code alone, freed afterwards
	TimeoutSeconds float64        `json:"timeout_seconds,omitempty"` // the shorter one counts where both are given; neither: 300 s
	TimeoutMS      float64        `json:"timeout_ms,omitempty"`      //
	WorkingDir     string         `json:"working_dir,omitempty"`     // "": the machine's home. It is made where it is missing
	Requirements   []string       `json:"requirements,omitempty"`    // is refused unless empty: nothing installs them
	Metadata       map[string]any `json:"metadata,omitempty"`        // is ignored
}

// ExecuteResult is the answer of POST /api/llm/execute.
type ExecuteResult struct {
	ExecutionID string    `json:"execution_id"`
	VMID        string    `json:"vm_id"`
	ExitCode    *int      `json:"exit_code"` // nil never means success
	Stdout      string    `json:"stdout"`
	Stderr      string    `json:"stderr"`
	DurationMS  float64   `json:"duration_ms"`
	StartedAt   time.Time `json:"started_at"`
	CompletedAt time.Time `json:"completed_at"`
	Error       *string   `json:"error"`               // what the machinery says: it timed out, it could not be started
	Truncated   bool      `json:"truncated,omitempty"` // an output was larger than is returned
}

// ExecRequest is the body of POST /api/vms/{id}/exec.
type ExecRequest struct {
	ID        string      `json:"id,omitempty"` // names the command for its input, its terminal and its end; "": a random one
	Args      []Text      `json:"args,omitempty"`
	Script    Text        `json:"script,omitempty"` // for bash, in place of args
	Dir       Text        `json:"dir,omitempty"`    // "": /
	Env       []Text      `json:"env,omitempty"`    // KEY=VALUE, the whole environment; none: the machine's own
	User      string      `json:"user,omitempty"`   // "": the agent's own
	Stdin     bool        `json:"stdin,omitempty"`  // the input will be sent to …/exec/{exec}/stdin; else there is none
	Split     bool        `json:"split,omitempty"`  // tell standard error apart
	TTY       *WindowSize `json:"tty,omitempty"`    // give it a terminal
	TimeoutMS int64       `json:"timeout_ms,omitempty"`
	GraceMS   int64       `json:"grace_ms,omitempty"` // between being asked to end and being killed
}

// WindowSize is the size of a terminal in characters.
type WindowSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Event is one line of the answer of POST /api/vms/{id}/exec: JSON, ended by a newline. The last one has type exit or
// error; a stream that ends without it was cut off, and that is never a success.
type Event struct {
	Type  string     `json:"type"`            // started, stdout, stderr, beat, exit or error
	ID    string     `json:"id,omitempty"`    // started: the command's
	Data  []byte     `json:"data,omitempty"`  // stdout, stderr: base64
	Exit  *Exit      `json:"exit,omitempty"`  // exit
	Error *ErrorBody `json:"error,omitempty"` // error: the machinery failed
}

// Exit is how a command ended.
type Exit struct {
	Code       int     `json:"code"`
	Signal     string  `json:"signal,omitempty"`
	Started    bool    `json:"started"` // false: it could not be, and Message says why
	Message    string  `json:"message,omitempty"`
	DurationMS float64 `json:"duration_ms"`
	CPUMS      float64 `json:"cpu_ms,omitempty"`       // processor time of the process and of those that it waited for
	Memory     int64   `json:"memory_bytes,omitempty"` // the most that was seen in use in the machine meanwhile; 0: not measured
	Shortage   string  `json:"shortage,omitempty"`     // memory, processes or disk where it failed because the machine ran out of that
	Ended      string  `json:"ended,omitempty"`        // "timeout" or "cancelled" where it was ended before its time
}

// OutcomeRequest is the body of POST /api/vms/{id}/outcome.
type OutcomeRequest struct {
	Outcome string `json:"outcome"` // completed or failed
}

// LeaseRequest is the body of POST /api/vms/{id}/lease.
type LeaseRequest struct {
	Seconds int `json:"seconds"` // from now; 0 gives the lease back
}

// SnapshotRequest is the body of POST /api/vms/{id}/snapshots.
type SnapshotRequest struct {
	Name        string `json:"name,omitempty"`
	Description string `json:"description,omitempty"`
}

// Snapshot is a state of a machine that it can be rolled back to, as long as it lives.
type Snapshot struct {
	SnapshotID  string    `json:"snapshot_id"`
	ID          string    `json:"id"` // the same
	VMID        string    `json:"vm_id"`
	Name        string    `json:"name,omitempty"`
	Description string    `json:"description,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
	DurationMS  float64   `json:"duration_ms"` // that the machine stood still for it
	Bytes       int64     `json:"bytes"`       // that it takes on the host
}

// Snapshots is the answer of GET /api/vms/{id}/snapshots.
type Snapshots struct {
	VMID      string     `json:"vm_id"`
	Snapshots []Snapshot `json:"snapshots"` // the oldest first
}

// Rollback is the answer of POST /api/vms/{id}/rollback/{snapshot}.
type Rollback struct {
	Message    string  `json:"message"`
	SnapshotID string  `json:"snapshot_id"`
	VMID       string  `json:"vm_id"`
	DurationMS float64 `json:"duration_ms"`
}

// History is the answer of GET /api/vms/{id}/history.
type History struct {
	VMID    string         `json:"vm_id"`
	History []HistoryEntry `json:"history"` // the newest first
	Entries []HistoryEntry `json:"entries"` // the same: clients of the original disagree about the name
	Total   int            `json:"total"`   // of those that are kept, whatever the limit
}

// HistoryEntry is one command.
type HistoryEntry struct {
	ID         string    `json:"id"`
	Command    string    `json:"command"` // its first KiB
	Timestamp  time.Time `json:"timestamp"`
	Success    bool      `json:"success"`
	ExitCode   *int      `json:"exit_code"`        // nil while it runs, or when the machinery failed
	Stdout     string    `json:"stdout,omitempty"` // of /api/llm/execute only, the last 4 KiB: jobs print secrets
	Stderr     string    `json:"stderr,omitempty"`
	SnapshotID string    `json:"snapshot_id,omitempty"` // the last one taken, or rolled back to, before it
	DurationMS float64   `json:"duration_ms"`
}

// Deleted is the answer of DELETE /api/vms/{id}.
type Deleted struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	State  State  `json:"state"`
}

// Done is the answer of calls that have nothing more to say.
type Done struct {
	OK bool `json:"ok"`
}

// ErrorBody is the JSON of every error. Error is a string, as the original's clients expect.
type ErrorBody struct {
	Error string `json:"error"`
	Code  string `json:"code"` // invalid, unauthorized, not_found, conflict, limit, unsupported, unavailable, internal
}

// Error is an answer that says no. Both ends use it: the client returns the server's.
type Error struct {
	Status     int           // of HTTP
	Code       string        // as ErrorBody's
	Message    string        // for a person
	RetryAfter time.Duration // 0: trying again does not help, or nobody said when
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Is makes errors.Is find in the client's error what the agent's would have matched.
func (e *Error) Is(target error) bool {
	switch e.Code {
	case "not_exist":
		return target == fs.ErrNotExist
	case "exist":
		return target == fs.ErrExist
	case "permission":
		return target == fs.ErrPermission
	case "refused":
		return target == guest.ErrRefused
	case "lost":
		return target == guest.ErrLost
	case "unsupported":
		return target == errors.ErrUnsupported
	}
	return false
}

// Unwrap is what the agent said, where it was the agent who said no.
func (e *Error) Unwrap() error {
	switch e.Code {
	case "not_exist", "exist", "permission", "refused", "guest":
		return &guest.RemoteError{Message: e.Message}
	}
	return nil
}

// errorf makes an Error.
func errorf(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Text is bytes that are text nearly always: in JSON a string, or {"base64": "…"} where it is not UTF-8.
type Text string

// MarshalJSON implements json.Marshaler.
func (t Text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(binaryText{base64.StdEncoding.EncodeToString([]byte(t))})
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Text) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*t = Text(s)
		return nil
	}
	var bin binaryText
	if err := decodeStrict(b, &bin); err != nil {
		return errors.New(`want a string or {"base64": "…"}`)
	}
	raw, err := base64.StdEncoding.DecodeString(bin.Base64)
	if err != nil {
		return fmt.Errorf("base64: %w", err)
	}
	*t = Text(raw)
	return nil
}

type binaryText struct {
	Base64 string `json:"base64"`
}
