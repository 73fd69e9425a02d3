package vmapi

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/terraphim/tgr/guest"
)

// maxInline is how long code may be as an argument: the kernel takes 128 KiB. What is longer becomes a file.
const maxInline = 96 << 10

// statusTimeout is the exit status of code whose time was over, as timeout(1) has it.
const statusTimeout = 124

// check says what is wrong with a request, and how long the code may run.
func (q *ExecuteRequest) check() (time.Duration, error) {
	limit := maxTimeout
	for _, t := range []struct {
		name  string
		value float64
		unit  time.Duration
	}{{"timeout_seconds", q.TimeoutSeconds, time.Second}, {"timeout_ms", q.TimeoutMS, time.Millisecond}} {
		if math.IsNaN(t.value) || t.value < 0 || t.value > float64(maxTimeout/t.unit) {
			return 0, invalid("%s is %v: expected 0 to %d", t.name, t.value, maxTimeout/t.unit)
		}
		if t.value > 0 {
			limit = min(limit, time.Duration(t.value*float64(t.unit)))
		}
	}
	if q.TimeoutSeconds == 0 && q.TimeoutMS == 0 {
		limit = execTimeout
	}
	switch {
	case q.Code == "":
		return 0, invalid("there is no code")
	case strings.Contains(q.Code, "\x00"):
		return 0, invalid("the code has a NUL byte")
	case len(q.Requirements) > 0:
		return 0, invalid("requirements are not installed: do it in the code, or build an image with them")
	case len(q.AgentID) > maxLabel:
		return 0, invalid("agent_id is too long")
	case q.WorkingDir != "" && !path.IsAbs(q.WorkingDir):
		return 0, invalid("working_dir is %q: expected an absolute path", cut(q.WorkingDir, 200))
	}
	switch q.Language {
	case "bash", "python", "javascript":
		return limit, nil
	default:
		return 0, invalid("language is %q: expected bash, python or javascript", cut(q.Language, 50))
	}
}

// program is the command line that runs code of a language: inline, or from a file.
func (q *ExecuteRequest) program(p Place, file string) []string {
	name, flag := "bash", "-c"
	switch q.Language {
	case "python":
		name = "python3"
	case "javascript":
		name, flag = cmp.Or(p.Nodes["node24"], p.Nodes["node20"], "node"), "-e"
	}
	if file != "" {
		return []string{name, file}
	}
	return []string{name, flag, q.Code}
}

// execute runs code and answers when it has ended, as the original did.
func (s *Server) execute(w http.ResponseWriter, r *request) error {
	var req ExecuteRequest
	if err := body(r, &req, false); err != nil {
		return err
	}
	limit, err := req.check()
	if err != nil {
		return err
	}
	m, release, err := s.executor(r, &req)
	if err != nil {
		return err
	}
	defer release()
	result, err := s.run(r.Context(), m, &req, limit)
	if err != nil {
		return err
	}
	s.json(w, http.StatusOK, result)
	return nil
}

// executor returns the machine that code is for: the one it names, or one for it alone.
func (s *Server) executor(r *request, req *ExecuteRequest) (*machine, func(), error) {
	if req.VMID != "" {
		m, err := s.usable(req.VMID)
		return m, func() {}, err
	}
	m, err := s.start(r.Context(), CreateRequest{Name: cmp.Or(req.AgentID, "execute")}, r.user)
	if err != nil {
		return nil, nil, err
	}
	release := func() {
		m.stop(&stopped{"its code has ended"})
		<-m.freed
	}
	m.wait(r.Context())
	if _, err := s.usable(m.id); err != nil {
		release()
		return nil, nil, err
	}
	return m, release, nil
}

// run runs code in a machine.
func (s *Server) run(ctx context.Context, m *machine, req *ExecuteRequest, limit time.Duration) (*ExecuteResult, error) {
	end, err := m.session.Begin()
	if err != nil {
		return nil, err
	}
	defer end()
	agent, err := m.client(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTimeout)
	defer cancel()
	stop, cancelWith := context.WithCancelCause(ctx)
	defer cancelWith(nil)
	x := &execution{agent: agent, cancel: cancelWith}
	q := ExecRequest{Script: Text(req.Code)}
	if err := q.check(); err != nil {
		return nil, err
	}
	x.id = q.ID
	entry, err := m.enter(x, &q)
	if err != nil {
		return nil, err
	}
	defer m.leave(x)

	began := time.Now()
	var out, errout bounded
	exit, err := m.runCode(stop, agent, x.id, req, &out, &errout)
	took := time.Since(began)
	code, said, err := verdict(stop, exit, err, limit)
	if err != nil {
		m.note(entry, nil, took)
		return nil, err
	}
	m.note(entry, &code, took)
	m.mu.Lock()
	entry.Stdout, entry.Stderr = tail(out.b.String(), maxRecalled), tail(errout.b.String(), maxRecalled)
	m.mu.Unlock()
	return &ExecuteResult{ExecutionID: x.id, VMID: m.id, ExitCode: &code, Stdout: strings.ToValidUTF8(out.b.String(), "�"),
		Stderr: strings.ToValidUTF8(errout.b.String(), "�"), DurationMS: ms(took), StartedAt: began, CompletedAt: began.Add(took),
		Error: said, Truncated: out.more || errout.more}, nil
}

// verdict is the exit status of code and what there is to say about it; or the machinery's failure.
func verdict(ctx context.Context, exit guest.Exit, err error, limit time.Duration) (int, *string, error) {
	say := func(format string, args ...any) *string {
		text := fmt.Sprintf(format, args...)
		return &text
	}
	switch {
	case endedBy(ctx) == "timeout" && (exit.Started || err == nil || errors.Is(err, errTimeout)):
		return statusTimeout, say("it was ended after %v", limit), nil
	case err != nil && !(exit.Started && endedBy(ctx) == "cancelled"):
		return 0, nil, err
	case !exit.Started:
		return exit.Code, say("%s", exit.Message), nil
	default:
		return exit.Code, nil, nil
	}
}

func (m *machine) runCode(ctx context.Context, agent *guest.Client, id string, req *ExecuteRequest, out, errout *bounded) (guest.Exit, error) {
	m.mu.Lock()
	place := m.place
	m.mu.Unlock()
	dir := cmp.Or(req.WorkingDir, place.HomeDir())
	if !m.back.Shared { // the machine is the caller's alone; the original's clients name folders that are not there
		if err := agent.Put(ctx, dir, emptyTar()); err != nil {
			return guest.Exit{}, fmt.Errorf("make working_dir: %w", err)
		}
	}
	file := ""
	if len(req.Code) > maxInline {
		b, err := tarOf(id, req.Code)
		if err != nil {
			return guest.Exit{}, err
		}
		if err := agent.Put(ctx, "/tmp/tgr-execute", b); err != nil {
			return guest.Exit{}, err
		}
		file = "/tmp/tgr-execute/" + id
	}
	return agent.Exec(ctx, guest.Cmd{ID: id, Args: req.program(place, file), Dir: dir, Env: place.Environment(), User: place.User, Stderr: errout}, out)
}

// emptyTar makes Put make a folder, and nothing in it.
func emptyTar() *bytes.Reader { return bytes.NewReader(make([]byte, 1024)) }

func tarOf(name, text string) (*bytes.Buffer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text)), ModTime: time.Now()})
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	return &b, errors.Join(err, w.Close())
}

// bounded keeps the first maxOutput bytes.
type bounded struct {
	b    bytes.Buffer
	more bool
}

// Write implements io.Writer. It never fails: what is too much is dropped.
func (w *bounded) Write(b []byte) (int, error) {
	n := len(b)
	if room := maxOutput - w.b.Len(); len(b) > room {
		b, w.more = b[:room], true
	}
	w.b.Write(b)
	return n, nil
}

// unsupported is the answer for what a kind of machine cannot do.
func unsupported(format string, args ...any) *Error {
	return errorf(http.StatusNotImplemented, "unsupported", format, args...)
}
