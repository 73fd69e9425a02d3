package vmapi

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr/guest"
)

const (
	maxExecs   = 64               // commands of one machine at once
	beatEvery  = 10 * time.Second // an answer shows itself, so that silence means trouble
	writeEvent = time.Minute      // that a client may take for one line of an answer
)

// Causes of a command's end before its time.
var (
	errTimeout   = errors.New("the command's time is over")
	errCancelled = errors.New("cancelled")
)

// execution is a command that runs.
type execution struct {
	id     string
	agent  *guest.Client
	cancel context.CancelCauseFunc
	stdin  *io.PipeWriter // nil: it takes no input
	fed    bool           // somebody sends the input
	tty    bool
}

// check says what is wrong with a request, and fills in what it leaves out.
func (q *ExecRequest) check() error {
	if q.ID == "" {
		q.ID = "exec-" + strings.ToLower(rand.Text()[:16])
	}
	if err := label("id", q.ID); err != nil {
		return invalid("%v", err)
	}
	most := int64(maxTimeout / time.Millisecond)
	switch {
	case (len(q.Args) == 0) == (q.Script == ""):
		return invalid("expected args, or a script, and not both")
	case q.TimeoutMS < 0 || q.TimeoutMS > most || q.GraceMS < 0 || q.GraceMS > int64(time.Hour/time.Millisecond):
		return invalid("timeout_ms may be up to %d, grace_ms up to an hour", most)
	case q.TTY != nil && q.Split:
		return invalid("a terminal has no standard error apart")
	case len(q.User) > maxLabel:
		return invalid("the user's name is too long")
	}
	return nil
}

// command is what the request asks the agent for.
func (q *ExecRequest) command(p Place) guest.Cmd {
	c := guest.Cmd{ID: q.ID, Dir: string(q.Dir), User: q.User, Grace: time.Duration(q.GraceMS) * time.Millisecond}
	for _, a := range q.Args {
		c.Args = append(c.Args, string(a))
	}
	if q.Script != "" {
		c.Args = []string{"bash", "-c", string(q.Script)}
	}
	for _, e := range q.Env {
		c.Env = append(c.Env, string(e))
	}
	if len(q.Env) == 0 {
		c.Env = p.Environment()
	}
	if q.TTY != nil {
		c.TTY = &guest.WindowSize{Rows: q.TTY.Rows, Cols: q.TTY.Cols}
	}
	return c
}

// HomeDir is where jobs live in a machine.
func (p Place) HomeDir() string {
	if p.Home != "" {
		return p.Home
	}
	return "/home/runner"
}

// Environment is that of a command which brings none.
func (p Place) Environment() []string {
	env := []string{"HOME=" + p.HomeDir()}
	for k, v := range p.Env {
		env = append(env, k+"="+v)
	}
	if p.Env["PATH"] == "" {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	slices.Sort(env)
	return env
}

// exec runs a command and streams what it says.
func (s *Server) exec(w http.ResponseWriter, r *request) error {
	m, err := s.usable(r.PathValue("id"))
	if err != nil {
		return err
	}
	var req ExecRequest
	if err := body(r, &req, false); err != nil {
		return err
	}
	if err := req.check(); err != nil {
		return err
	}
	agent, end, err := m.begin(r.Context())
	if err != nil {
		return err
	}
	defer end()
	m.mu.Lock()
	cmd := req.command(m.place)
	m.mu.Unlock()
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	x := &execution{id: req.ID, agent: agent, cancel: cancel, tty: req.TTY != nil}
	if req.Stdin {
		var in *io.PipeReader
		in, x.stdin = io.Pipe()
		cmd.Stdin = in
		defer in.CloseWithError(io.ErrClosedPipe) // frees who still sends
	}
	entry, err := m.enter(x, &req)
	if err != nil {
		return err
	}
	defer m.leave(x)
	if req.TimeoutMS > 0 {
		t := time.AfterFunc(time.Duration(req.TimeoutMS)*time.Millisecond, func() { cancel(errTimeout) })
		defer t.Stop()
	}
	ev := newEvents(w, r)
	ev.send(Event{Type: "started", ID: cmd.ID})
	if req.Split {
		cmd.Stderr = eventWriter{ev, "stderr"}
	}
	ev.send(m.follow(ctx, agent, cmd, ev, entry))
	return nil
}

// enter registers a command that begins.
func (m *machine) enter(x *execution, req *ExecRequest) (*HistoryEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.execs[x.id] != nil {
		return nil, errorf(http.StatusConflict, "exist", "a command with the id %q runs", x.id)
	}
	if len(m.execs) >= maxExecs {
		e := errorf(http.StatusTooManyRequests, "limit", "%d commands run in %s", len(m.execs), m.id)
		e.RetryAfter = time.Second
		return nil, e
	}
	m.execs[x.id] = x
	words := []string{string(req.Script)}
	if req.Script == "" {
		words = words[:0]
		for _, a := range req.Args {
			words = append(words, string(a))
		}
	}
	entry := &HistoryEntry{ID: x.id, Command: strings.Join(words, " "), Timestamp: time.Now(), SnapshotID: m.at}
	m.history.add(entry)
	return entry, nil
}

func (m *machine) leave(x *execution) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.execs, x.id)
}

// follow runs cmd, whose output goes to ev, and returns the last event.
func (m *machine) follow(ctx context.Context, agent *guest.Client, cmd guest.Cmd, ev *events, entry *HistoryEntry) Event {
	beats, over := context.WithCancel(ctx)
	var beating sync.WaitGroup
	beating.Go(func() { ev.beat(beats) })
	defer beating.Wait()
	defer over()
	began := time.Now()
	exit, err := agent.Exec(ctx, cmd, eventWriter{ev, "stdout"})
	took := time.Since(began)
	if ended := endedBy(ctx); err == nil || ended != "" && exit.Started {
		m.note(entry, &exit.Code, took)
		return Event{Type: "exit", Exit: &Exit{Code: exit.Code, Signal: exit.Signal, Started: exit.Started, Message: exit.Message,
			DurationMS: ms(exit.Duration), CPUMS: ms(exit.CPU), Memory: exit.Memory, Shortage: string(exit.Shortage), Ended: ended}}
	}
	if errors.Is(err, guest.ErrLost) {
		err = m.dead(err)
	}
	m.note(entry, nil, took)
	e := asError(err)
	return Event{Type: "error", Error: &ErrorBody{Error: e.Message, Code: e.Code}}
}

// endedBy says whether a command was ended before its time, and why.
func endedBy(ctx context.Context) string {
	switch cause := context.Cause(ctx); {
	case ctx.Err() == nil:
		return ""
	case errors.Is(cause, errTimeout):
		return "timeout"
	default:
		return "cancelled"
	}
}

// events writes the lines of an answer.
type events struct {
	mu      sync.Mutex
	enc     *json.Encoder
	control *http.ResponseController
}

// newEvents begins an answer that is a stream.
func newEvents(w http.ResponseWriter, r *request) *events {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold it back
	w.WriteHeader(http.StatusOK)
	return &events{enc: json.NewEncoder(w), control: r.control}
}

func (e *events) send(ev Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.control.SetWriteDeadline(time.Now().Add(writeEvent))
	if err := e.enc.Encode(ev); err != nil {
		return err
	}
	return e.control.Flush()
}

func (e *events) beat(ctx context.Context) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			e.send(Event{Type: "beat"})
		}
	}
}

// eventWriter writes output as events.
type eventWriter struct {
	to   *events
	kind string
}

// Write sends b, whose pieces are as the agent sent them: at most 64 KiB.
func (w eventWriter) Write(b []byte) (int, error) {
	if err := w.to.send(Event{Type: w.kind, Data: b}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// running finds the command of a request.
func (s *Server) running(r *request) (*execution, *machine, error) {
	m, err := s.find(r.PathValue("id"))
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if x := m.execs[r.PathValue("exec")]; x != nil {
		return x, m, nil
	}
	return nil, nil, errorf(http.StatusNotFound, "not_found", "no command %q runs in %s", cut(r.PathValue("exec"), maxLabel), m.id)
}

// stdin takes the input of a command, which the end of the body ends.
func (s *Server) stdin(w http.ResponseWriter, r *request) error {
	x, m, err := s.running(r)
	if err != nil {
		return err
	}
	m.mu.Lock()
	again := x.fed
	x.fed = true
	m.mu.Unlock()
	switch {
	case x.stdin == nil:
		return errorf(http.StatusConflict, "conflict", "the command %q takes no input: it was not asked for with stdin", x.id)
	case again:
		return errorf(http.StatusConflict, "conflict", "the input of the command %q is sent already", x.id)
	}
	_, err = io.Copy(x.stdin, r.Body)
	if err != nil && !errors.Is(err, io.ErrClosedPipe) { // which says that the command has ended
		x.stdin.CloseWithError(err)
		return invalid("the input was cut off: %v", err)
	}
	x.stdin.Close()
	s.json(w, http.StatusOK, Done{OK: true})
	return nil
}

func (s *Server) resize(w http.ResponseWriter, r *request) error {
	x, _, err := s.running(r)
	if err != nil {
		return err
	}
	var size WindowSize
	if err := body(r, &size, false); err != nil {
		return err
	}
	if !x.tty {
		return errorf(http.StatusConflict, "conflict", "the command %q has no terminal", x.id)
	}
	if err := x.agent.Resize(r.Context(), x.id, guest.WindowSize(size)); err != nil {
		return err
	}
	s.json(w, http.StatusOK, Done{OK: true})
	return nil
}

// cancelExec ends a command as its grace says. The stream of the command goes on until it has ended.
func (s *Server) cancelExec(w http.ResponseWriter, r *request) error {
	x, _, err := s.running(r)
	if err != nil {
		return err
	}
	x.cancel(errCancelled)
	s.json(w, http.StatusOK, Done{OK: true})
	return nil
}

// putFiles unpacks a tar stream in a machine.
func (s *Server) putFiles(w http.ResponseWriter, r *request) error {
	m, dir, err := s.place(r)
	if err != nil {
		return err
	}
	agent, end, err := m.begin(r.Context())
	if err != nil {
		return err
	}
	defer end()
	if err := agent.Put(r.Context(), dir, http.MaxBytesReader(w, r.Body, s.cfg.MaxFiles)); err != nil {
		return err
	}
	s.json(w, http.StatusOK, Done{OK: true})
	return nil
}

// getFiles sends a tar stream. One that breaks off is cut off too, and never looks whole.
func (s *Server) getFiles(w http.ResponseWriter, r *request) error {
	m, name, err := s.place(r)
	if err != nil {
		return err
	}
	agent, end, err := m.begin(r.Context())
	if err != nil {
		return err
	}
	defer end()
	tree, err := agent.Get(r.Context(), name)
	if err != nil {
		return err
	}
	defer tree.Close()
	w.Header().Set("Content-Type", "application/x-tar")
	w.WriteHeader(http.StatusOK)
	if _, err := io.Copy(w, tree); err != nil {
		if r.Context().Err() == nil {
			s.log.Warn("files of a machine were cut off", "vm", m.id, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	return nil
}

// place is the machine and the path of a request about files.
func (s *Server) place(r *request) (*machine, string, error) {
	m, err := s.usable(r.PathValue("id"))
	if err != nil {
		return nil, "", err
	}
	name := r.URL.Query().Get("path")
	if !path.IsAbs(name) || strings.Contains(name, "\x00") {
		return nil, "", invalid("path is %q: expected an absolute path in the machine", cut(name, 200))
	}
	return m, name, nil
}

// begin says that something is being executed in the machine, until end is called, and returns the agent to do it with.
func (m *machine) begin(ctx context.Context) (agent *guest.Client, end func(), err error) {
	if end, err = m.session.Begin(); err != nil {
		return nil, nil, err
	}
	if agent, err = m.client(ctx); err != nil {
		end()
		return nil, nil, err
	}
	return agent, end, nil
}
