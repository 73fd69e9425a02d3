package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// scripted starts a client and a QEMU that answers each line with what reply returns.
func scripted(t *testing.T, event func(string, json.RawMessage), reply func(line string) string) *qmp {
	t.Helper()
	here, there := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer there.Close()
		if _, err := there.Write([]byte(`{"QMP": {"version": {}}}` + "\n")); err != nil {
			return
		}
		for s := bufio.NewScanner(there); s.Scan(); {
			answer := reply(s.Text())
			if answer == "" {
				return
			}
			if _, err := there.Write([]byte(answer)); err != nil {
				return
			}
		}
	})
	if event == nil {
		event = func(string, json.RawMessage) {}
	}
	q := newQMP(here, event)
	t.Cleanup(func() {
		q.conn.Close()
		<-q.done
		wg.Wait()
	})
	return q
}

func TestQMP(t *testing.T) {
	var events []string
	q := scripted(t, func(name string, data json.RawMessage) { events = append(events, name+" "+string(data)) }, func(line string) string {
		var c struct {
			Execute   string
			Arguments map[string]any
			ID        int
		}
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Error(err)
		}
		switch c.Execute {
		case "query-status":
			return `{"event": "STOP", "timestamp": {}}` + "\n" + `{"event": "SHUTDOWN", "data": {"guest": true}}` + "\n" +
				`{"return": {"status": "running"}, "id": 1}` + "\n"
		default:
			return `{"id": 2, "error": {"class": "CommandNotFound", "desc": "The command ` + c.Arguments["x"].(string) + ` has not been found"}}` + "\n"
		}
	})
	var status struct{ Status string }
	if err := q.execute(t.Context(), "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("got %+v, %v", status, err)
	}
	if diff := cmp.Diff([]string{"STOP ", `SHUTDOWN {"guest": true}`}, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	err := q.execute(t.Context(), "bad", map[string]string{"x": "y"}, nil)
	if err == nil || err.Error() != "qmp: bad: CommandNotFound: The command y has not been found" {
		t.Errorf("got %v", err)
	}
}

func TestQMPBadPeer(t *testing.T) {
	for name, answer := range map[string]string{
		"hangs up":     "",
		"not JSON":     "hello\n",
		"endless line": strings.Repeat("x", maxQMP+1),
	} {
		t.Run(name, func(t *testing.T) {
			q := scripted(t, nil, func(string) string { return answer })
			if err := q.execute(t.Context(), "query-status", nil, nil); !errors.Is(err, errQMPClosed) {
				t.Errorf("got %v, want errQMPClosed", err)
			}
			<-q.done
			if err := q.execute(t.Context(), "query-status", nil, nil); !errors.Is(err, errQMPClosed) {
				t.Errorf("afterwards: %v, want errQMPClosed", err)
			}
		})
	}
}

func TestQMPContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	q := scripted(t, nil, func(string) string {
		cancel(why)
		return `{"event": "X"}` + "\n"
	})
	if err := q.execute(ctx, "query-status", nil, nil); !errors.Is(err, why) {
		t.Errorf("got %v, want the context's cause", err)
	}
}

func FuzzQMP(f *testing.F) {
	f.Add([]byte(`{"return": {}, "id": 1}` + "\n"))
	f.Add([]byte(`{"event": "SHUTDOWN", "data": {"reason": "guest-panic"}}` + "\n" + `{"id":1,"error":{}}` + "\n"))
	f.Add([]byte(`{"id":1,"error":null,"return":null}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &emulator{ready: make(chan struct{}), done: make(chan struct{})}
		here, there := net.Pipe()
		q := newQMP(here, func(name string, data json.RawMessage) {
			if name != "BLOCK_IO_ERROR" { // it kills a process, of which there is none here
				m.onEvent(name, data)
			}
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			bufio.NewReader(there).ReadString('\n')
			there.Write(append(b, '\n'))
			there.Close()
		}()
		var result map[string]any
		q.execute(t.Context(), "query-status", nil, &result)
		here.Close()
		<-q.done
		<-done
	})
}
