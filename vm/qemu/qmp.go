package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// maxQMP bounds one message of QEMU: a machine that broke out of its guest must not fill our memory.
const maxQMP = 1 << 20

var errQMPClosed = errors.New("qmp: the connection is closed")

// qmp is a client of the QEMU Machine Protocol: one JSON object per line (docs/interop/qmp-spec.txt).
// One goroutine reads; it calls event in the order of arrival. execute is safe for concurrent use.
type qmp struct {
	conn  net.Conn
	event func(name string, data json.RawMessage)
	done  chan struct{} // closed when nothing more will arrive

	mu      sync.Mutex
	next    int64
	pending map[int64]chan qmpMessage // nil once the connection is closed
}

// qmpMessage is anything that QEMU sends: a greeting, an event, or the answer to a command.
type qmpMessage struct {
	QMP    json.RawMessage `json:"QMP"`
	ID     *int64          `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// newQMP takes over conn and starts its reader. The caller closes it.
func newQMP(conn net.Conn, event func(name string, data json.RawMessage)) *qmp {
	q := &qmp{conn: conn, event: event, done: make(chan struct{}), pending: map[int64]chan qmpMessage{}}
	go q.read()
	return q
}

func (q *qmp) read() {
	defer close(q.done)
	defer q.fail()
	s := bufio.NewScanner(q.conn)
	s.Buffer(make([]byte, 0, 4096), maxQMP)
	for s.Scan() {
		var m qmpMessage
		if json.Unmarshal(s.Bytes(), &m) != nil {
			return // what speaks like this is not QEMU: the machine's end tells
		}
		switch {
		case m.Event != "":
			q.event(m.Event, m.Data)
		case m.ID != nil:
			q.mu.Lock()
			ch := q.pending[*m.ID]
			delete(q.pending, *m.ID)
			q.mu.Unlock()
			if ch != nil {
				ch <- m
			}
		}
	}
}

// fail ends the commands that wait for an answer.
func (q *qmp) fail() {
	q.conn.Close()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, ch := range q.pending {
		close(ch)
	}
	q.pending = nil
}

// execute runs a command and waits for its answer, which it decodes into result unless that is nil.
// QEMU reads commands only after its greeting, but it may be sent the first one before.
func (q *qmp) execute(ctx context.Context, command string, arguments, result any) error {
	return q.send(ctx, command, arguments, result, nil)
}

// passFile gives QEMU a descriptor of its own for f, under a name for a later command (getfd).
func (q *qmp) passFile(ctx context.Context, name string, f *os.File) error {
	return q.send(ctx, "getfd", map[string]string{"fdname": name}, nil, f)
}

func (q *qmp) send(ctx context.Context, command string, arguments, result any, file *os.File) error {
	ch := make(chan qmpMessage, 1)
	q.mu.Lock()
	if q.pending == nil {
		q.mu.Unlock()
		return errQMPClosed
	}
	q.next++
	id := q.next
	q.pending[id] = ch
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int64  `json:"id"`
	}{command, arguments, id})
	if err == nil {
		err = q.write(append(line, '\n'), file)
	}
	q.mu.Unlock()
	if err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("qmp: %s: %w", command, context.Cause(ctx))
	case m, ok := <-ch:
		switch {
		case !ok:
			return fmt.Errorf("qmp: %s: %w", command, errQMPClosed)
		case m.Error != nil:
			return fmt.Errorf("qmp: %s: %s: %s", command, m.Error.Class, m.Error.Desc)
		case result != nil:
			return json.Unmarshal(m.Return, result)
		}
		return nil
	}
}

// write sends a line, and with it a descriptor if file is not nil, which a unix socket can.
func (q *qmp) write(line []byte, file *os.File) error {
	if file == nil {
		_, err := q.conn.Write(line)
		return err
	}
	c, ok := q.conn.(*net.UnixConn)
	if !ok {
		return errors.New("the connection cannot pass a file")
	}
	_, _, err := c.WriteMsgUnix(line, syscall.UnixRights(int(file.Fd())), nil)
	return err
}
