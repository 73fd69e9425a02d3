package guest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// Protocol is the version that both ends must speak.
//
//	1  2026-11-23  the first
//	   2026-11-24  listen and accept, which an older agent answers with a failure
const Protocol = 1

// Bounds of the wire. Whoever exceeds one loses the session.
const (
	maxData    = 64 << 10  // bytes of input, tar or a connection in one frame
	maxOutput  = 256 << 10 // bytes of output in one; a process gets so much room when it fills maxData
	maxReply   = 64 << 10  // bytes of JSON from the agent
	maxRequest = 4 << 20   // bytes of JSON from the host: Linux takes 2 MiB of arguments and environment
	maxFrame   = maxOutput + seqSize

	headerSize = 5 // kind, length
	seqSize    = 8 // a sequence number before output
)

// Times of the wire. Every operation in progress shows itself once a beat, so that silence means trouble.
const (
	beatEvery   = 5 * time.Second
	silence     = 25 * time.Second // without any frame: the agent hangs
	pingEvery   = 10 * time.Second // of the whole session; with pingTimeout below 30 s
	pingTimeout = 15 * time.Second
)

// kind is the first byte of a frame; the four that follow are the length of the rest, big-endian.
type kind byte

// The frames. Each operation has a stream of its own, which begins with a request of the host's.
const (
	kRequest kind = iota + 1 // host: a request
	kData                    // both: bytes of a file, a tar or standard input
	kEnd                     // both: no more data; from the agent with a reply
	kAck                     // host: output up to this sequence number has been delivered
	kCancel                  // host: end the process, with this grace in nanoseconds
	kDone                    // host: the exit has arrived, forget the process
	kStdout                  // agent: sequence number and output
	kStderr                  // agent: the same, standard error
	kStarted                 // agent: the process runs
	kExit                    // agent: an Exit
	kError                   // agent: a failure
	kBeat                    // agent: still at work
)

// op is what a request asks for.
type op string

const (
	opExec    op = "exec"    // start and attach
	opStart   op = "start"   // start; output waits for attach
	opAttach  op = "attach"  // output from a sequence number on
	opStdin   op = "stdin"   // the standard input of a process that is running
	opSignal  op = "signal"  //
	opResize  op = "resize"  // the terminal of a process that is running
	opPut     op = "put"     //
	opGet     op = "get"     //
	opPrepare op = "prepare" //
	opListen  op = "listen"  // open a port, until the stream ends
	opAccept  op = "accept"  // the next connection to that port, as data in both directions
)

// request begins a stream. Bytes rather than strings: arguments and environments need not be UTF-8.
type request struct {
	Op       op          `json:"op"`
	ID       string      `json:"id,omitempty"`
	Args     [][]byte    `json:"args,omitempty"`
	Env      [][]byte    `json:"env,omitempty"`
	Dir      []byte      `json:"dir,omitempty"` // of exec and put; the path of get
	User     string      `json:"user,omitempty"`
	Stdin    bool        `json:"stdin,omitempty"`
	Split    bool        `json:"split,omitempty"` // standard error apart
	TTY      *WindowSize `json:"tty,omitempty"`
	From     uint64      `json:"from,omitempty"`
	Signal   int         `json:"signal,omitempty"`
	Identity *Identity   `json:"identity,omitempty"`
	Addr     string      `json:"addr,omitempty"` // of listen
}

// reply ends an operation that has no Exit.
type reply struct {
	Skipped []string `json:"skipped,omitempty"` // by get: neither file, folder nor link
	Clock   int64    `json:"clock,omitempty"`   // by prepare, of an identity that is empty: nanoseconds since 1970
}

// failure is an error on the wire: its code says what errors.Is shall find in it.
type failure struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
}

// RemoteError is what the agent says went wrong. It is hostile text: show it, trust nothing in it.
type RemoteError struct {
	Message string
	kind    error
}

// Error returns the agent's words.
func (e *RemoteError) Error() string { return e.Message }

// Unwrap returns fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, ErrGone, ErrRefused or nil.
func (e *RemoteError) Unwrap() error { return e.kind }

// Sentinels; wrapped errors of the package's functions match them with errors.Is.
var (
	// ErrLost is a stream to the agent that broke: the machine may be dead, or another host took the stream.
	ErrLost = errors.New("the stream to the agent is lost")
	// ErrProtocol is an agent that does not keep to the protocol.
	ErrProtocol = errors.New("the agent broke the protocol")
	// ErrGone is output that is no longer kept for a re-attaching host.
	ErrGone = errors.New("the output asked for is no longer kept")
	// ErrRefused is a request that this agent's configuration does not allow, or a path that leads astray.
	ErrRefused = errors.New("refused")
)

// codes maps failures to what errors.Is finds, in the order in which they are tried.
func codes() []struct {
	code string
	err  error
} {
	return []struct {
		code string
		err  error
	}{{"not_exist", fs.ErrNotExist}, {"exist", fs.ErrExist}, {"permission", fs.ErrPermission}, {"gone", ErrGone}, {"refused", ErrRefused}}
}

func failureOf(err error) failure {
	f := failure{Message: clip(err.Error(), 4096)}
	for _, c := range codes() {
		if errors.Is(err, c.err) {
			f.Code = c.code
			break
		}
	}
	return f
}

func (f failure) err() error {
	e := &RemoteError{Message: clip(f.Message, 4096)}
	for _, c := range codes() {
		if c.code == f.Code {
			e.kind = c.err
		}
	}
	return e
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// wireExit is Exit on the wire.
type wireExit struct {
	Code     int    `json:"code"`
	Signal   string `json:"signal,omitempty"`
	Started  bool   `json:"started"`
	Message  string `json:"message,omitempty"`
	Duration int64  `json:"duration"`

	Shortage Shortage `json:"shortage,omitempty"`
	CPU      int64    `json:"cpu,omitempty"`    // nanoseconds
	Memory   int64    `json:"memory,omitempty"` // bytes
}

// header puts a frame's header into b.
func header(b []byte, k kind, n int) {
	b[0] = byte(k)
	binary.BigEndian.PutUint32(b[1:], uint32(n))
}

// frame returns a whole frame, to be sent in one write.
func frame(k kind, payload []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(payload))
	header(b, k, len(payload))
	return append(b, payload...)
}

func frameJSON(k kind, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return frame(k, b), nil
}

func frameUint(k kind, n uint64) []byte {
	return frame(k, binary.BigEndian.AppendUint64(nil, n))
}

// reader reads frames of at most max bytes; the payload is valid until the next read.
type reader struct {
	r   io.Reader
	max int
	buf []byte
	hdr [headerSize]byte
}

func (r *reader) next() (kind, []byte, error) {
	if _, err := io.ReadFull(r.r, r.hdr[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(r.hdr[1:])
	if uint64(n) > uint64(r.max) {
		return 0, nil, fmt.Errorf("%w: a frame of %d bytes, the limit is %d", ErrProtocol, n, r.max)
	}
	if cap(r.buf) < int(n) {
		r.buf = make([]byte, max(int(n), 4096))
	}
	b := r.buf[:n]
	if _, err := io.ReadFull(r.r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return kind(r.hdr[0]), b, nil
}

// decode reads JSON that the other end sent as a frame of kind k.
func decode(k kind, payload []byte, v any) error {
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("%w: frame %d: %w", ErrProtocol, k, err)
	}
	return nil
}

func decodeUint(k kind, payload []byte) (uint64, error) {
	if len(payload) != 8 {
		return 0, fmt.Errorf("%w: frame %d of %d bytes, want 8", ErrProtocol, k, len(payload))
	}
	return binary.BigEndian.Uint64(payload), nil
}
