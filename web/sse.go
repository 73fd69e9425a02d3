package web

import (
	"bytes"
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// StreamEnd is the data of the event done, the last of a stream that came to its end. A stream that ends
// without it was cut: the client takes it up again where it was.
type StreamEnd struct {
	Status     tgr.Status     `json:"status"` // completed
	Conclusion tgr.Conclusion `json:"conclusion"`
	Reason     string         `json:"reason,omitempty"`
}

// LogLine is a line of a job's log, the data of the event line. The event's id is the line's number; for a try
// after the first, the try's number and a colon come before it.
type LogLine struct {
	Line int `json:"line"` // from 1
	Try  int `json:"try"`  // of the job, from 1: each has a log of its own
	tgr.LogLine
	Spans []Span `json:"spans,omitempty"` // only where they were asked for: Text for a page, without control sequences
}

// StepState is the data of the event step.
type StepState struct {
	Job tgr.JobID `json:"job_id"`
	tgr.Step
}

const (
	streamWrite = 20 * time.Second       // a client that takes nothing for so long is dropped, and may resume
	streamRetry = 1000                   // milliseconds after which a browser resumes
	streamBatch = 256                    // lines that may wait for a client
	streamPause = 100 * time.Millisecond // between two looks at the store, however often it changes
)

// stream writes server-sent events to one client.
type stream struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	buf bytes.Buffer
}

// openStream starts a stream, if there is a place for it. Without an error, the caller calls done at its end.
func (s *Server) openStream(w http.ResponseWriter, r *request) (st *stream, done func(), err error) {
	if r.Method != http.MethodGet { // HEAD: it would wait for a body that it does not want
		return nil, nil, &refusal{http.StatusMethodNotAllowed, tgr.Errorf("web", tgr.Invalid, "a stream takes GET, not %s", r.Method)}
	}
	select {
	case s.streams <- struct{}{}:
	default:
		return nil, nil, tgr.Errorf("web", tgr.Limit, "%d streams are open, which is the limit", cap(s.streams))
	}
	s.cfg.Metrics.streams.Inc()
	if rec, ok := w.(*recorder); ok {
		rec.stream = true
	}
	st = &stream{w: w, rc: http.NewResponseController(w)}
	st.rc.SetReadDeadline(time.Time{}) // else the server's ReadTimeout ends the request; not all writers have one
	h := w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("X-Accel-Buffering", "no")
	st.buf.WriteString("retry: " + strconv.Itoa(streamRetry) + "\n\n")
	done = func() {
		<-s.streams
		s.cfg.Metrics.streams.Dec()
	}
	st.flush() // a client that has gone is found out by the first event
	return st, done, nil
}

// event adds an event; flush sends it. JSON has no line breaks, so that no data can end an event.
func (st *stream) event(name, id string, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	if id != "" {
		st.buf.WriteString("id: " + id + "\n")
	}
	st.buf.WriteString("event: " + name + "\ndata: ")
	st.buf.Write(b)
	st.buf.WriteString("\n\n")
	if st.buf.Len() > 64<<10 {
		return st.flush()
	}
	return nil
}

// heartbeat tells client and proxies that the stream lives.
func (st *stream) heartbeat() error {
	st.buf.WriteString(": \n\n")
	return st.flush()
}

func (st *stream) flush() error {
	st.rc.SetWriteDeadline(time.Now().Add(streamWrite))
	if _, err := st.buf.WriteTo(st.w); err != nil {
		return err
	}
	return st.rc.Flush()
}

// failed tells the client what went wrong, so far as it may know. The stream ends after it.
func (s *Server) failed(st *stream, r *request, err error) {
	if r.Context().Err() != nil {
		return
	}
	s.log.Error("stream failed", "path", r.URL.Path, "err", err)
	if st.event("failed", "", ErrorDetail{Code: tgr.CodeOf(err), Message: tgr.MessageOf(err)}) == nil {
		st.flush() // the stream ends here either way
	}
}

// streamLog streams a job's log from the line after Last-Event-ID, or from ?from=, until the job has ended.
func (s *Server) streamLog(w http.ResponseWriter, r *request) error {
	job, _, err := s.job(r)
	if err != nil {
		return err
	}
	from, err := number(r.URL.Query().Get("from"), "from", 1, maxLine)
	if err != nil {
		return err
	}
	spans := r.URL.Query().Get("spans")
	if spans != "" && spans != "0" && spans != "1" {
		return invalid("spans is %q, and should be 0 or 1", cut(spans, 30))
	}
	f := &follower{s: s, job: job, try: max(job.Tries, 1), next: int(from) - 1, spans: spans == "1"}
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		if err := f.resume(last); err != nil {
			return err
		}
	}
	st, done, err := s.openStream(w, r)
	if err != nil {
		return err
	}
	defer done()
	f.st = st
	if err := f.run(r.Context()); err != nil {
		s.failed(st, r, err)
	}
	return nil
}

// maxLine is the highest number that a line may have.
const maxLine = 1 << 40

// follower streams the log of one job to one client.
type follower struct {
	s     *Server
	st    *stream
	job   tgr.Job
	try   int // whose log is sent
	next  int // the line that is due, from 0
	spans bool
	ended bool // the client or the server went away
}

// resume goes on after the event with that id. The log of an earlier try has nothing more to say.
func (f *follower) resume(id string) error {
	try, line, ok := strings.Cut(id, ":")
	if !ok {
		try, line = "1", id
	}
	t, errTry := number(try, "Last-Event-ID", 0, maxLine)
	n, errLine := number(line, "Last-Event-ID", 0, maxLine)
	if errTry != nil || errLine != nil || t == 0 || n == 0 {
		return invalid("Last-Event-ID is %q, and should be the id of an event of this stream", cut(id, 30))
	}
	if f.next = int(n); int(t) != f.try {
		f.next = 0
	}
	return nil
}

// run follows the log until the job is completed and nothing more was logged. The log of a job that is tried
// again may end and go on; that of a server that died may never be closed: the job's state decides.
func (f *follower) run(ctx context.Context) error {
	for {
		if err := f.follow(ctx); err != nil || f.ended {
			return err
		}
		if f.job.Tries > f.try { // it begins anew
			f.try, f.next = f.job.Tries, 0
			continue
		}
		if f.job.Status.Done() {
			break
		}
		if f.pause(ctx); f.ended {
			return nil
		}
	}
	// What was logged between the end of the log and that of the job.
	for l, err := range f.s.readLog(ctx, f.job.ID, f.log(), f.next) {
		if err != nil {
			return err
		}
		if err := f.line(l); err != nil {
			f.ended = true
			return nil
		}
	}
	if f.st.event("done", "", StreamEnd{f.job.Status, f.job.Conclusion, f.job.Reason}) == nil {
		f.st.flush() // an error means that the client has gone
	}
	return nil
}

// log is the try whose log is read: of a job that had no machine itself, but whose result was carried over from
// an earlier attempt, the latest.
func (f *follower) log() int { return min(f.try, f.job.Tries) }

// follow sends lines until the log is complete, or is quiet though the job has ended or is tried again.
func (f *follower) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	lines, failed := pull(ctx, f.s.cfg.Logs.Follow(ctx, f.job.ID, f.log(), f.next))
	defer func() {
		cancel()
		for range lines { // until the reader has gone
		}
	}()
	heart, poll := time.NewTicker(f.s.cfg.Heartbeat), time.NewTicker(f.s.cfg.Poll)
	defer heart.Stop()
	defer poll.Stop()
	quiet := false
	for {
		var err error // of writing: the client has gone
		select {
		case l, ok := <-lines:
			if !ok {
				f.refresh(ctx)
				return <-failed
			}
			quiet = false
			if err = f.line(l); err == nil && len(lines) == 0 {
				err = f.st.flush()
			}
		case <-heart.C:
			err = f.st.heartbeat()
		case <-poll.C:
			if quiet && (f.job.Status.Done() || f.job.Tries > f.try) {
				return nil
			}
			quiet = true
			f.refresh(ctx)
		case <-ctx.Done():
			f.ended = true
			return nil
		case <-f.s.stop:
			f.ended = true
			return nil
		}
		if err != nil {
			f.ended = true
			return nil
		}
	}
}

// pull reads seq in a goroutine of its own, which ends with seq or ctx and closes lines when it does.
// Then failed has the error, if there was one.
func pull(ctx context.Context, seq iter.Seq2[tgr.LogLine, error]) (lines <-chan tgr.LogLine, failed <-chan error) {
	out, errs := make(chan tgr.LogLine, streamBatch), make(chan error, 1)
	go func() {
		defer close(out)
		defer close(errs)
		for l, err := range seq {
			if err != nil {
				if ctx.Err() == nil && tgr.CodeOf(err) != tgr.NotFound { // nothing was logged yet
					errs <- err
				}
				return
			}
			select {
			case out <- l:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, errs
}

func (f *follower) line(l tgr.LogLine) error {
	f.next++
	out, id := LogLine{Line: f.next, Try: f.try, LogLine: l}, strconv.Itoa(f.next)
	if f.try > 1 {
		id = strconv.Itoa(f.try) + ":" + id
	}
	if f.spans {
		out.Text = shown(l.Text)
		out.Spans = logSpans(out.Text)
	}
	return f.st.event("line", id, out)
}

// refresh reads the job's state. What cannot be read now is read with the next tick.
func (f *follower) refresh(ctx context.Context) {
	job, err := f.s.cfg.Runs.Job(ctx, f.job.ID)
	if err != nil {
		if ctx.Err() == nil {
			f.s.log.Warn("read job for its stream", "job", f.job.ID, "err", err)
		}
		return
	}
	f.job = job
}

// pause waits for the job's next state.
func (f *follower) pause(ctx context.Context) {
	changed, free := (<-chan struct{})(nil), func() {}
	if f.s.cfg.Changed != nil {
		changed, free = f.s.cfg.Changed(f.job.Run)
	}
	defer free()
	// Read again after subscribing, so that no change falls between the two.
	before := f.job.Status
	if f.refresh(ctx); f.job.Status != before || f.job.Tries > f.try {
		return
	}
	least, poll := time.NewTimer(streamPause), time.NewTimer(f.s.cfg.Poll)
	defer least.Stop()
	defer poll.Stop()
	heart := time.NewTicker(f.s.cfg.Heartbeat)
	defer heart.Stop()
	for hit, rested := false, false; !hit || !rested; {
		select {
		case <-changed:
			hit, changed = true, nil
		case <-least.C:
			rested = true
		case <-poll.C:
			hit, rested = true, true
		case <-heart.C:
			if f.st.heartbeat() != nil {
				f.ended = true
				return
			}
		case <-ctx.Done():
			f.ended = true
			return
		case <-f.s.stop:
			f.ended = true
			return
		}
	}
	f.refresh(ctx)
}
