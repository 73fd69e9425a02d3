package web

import (
	"bufio"
	"context"
	"fmt"
	"iter"
	"net/http"
	"time"

	"github.com/terraphim/tgr"
)

// stamp is the time in front of a line of a log: GitHub's format, so that tools for its logs read ours.
const stamp = "2006-01-02T15:04:05.0000000Z "

// getLog sends what has been logged as plain text, exactly as it was kept: to be saved, not to be shown.
func (s *Server) getLog(w http.ResponseWriter, r *request) error {
	q := r.URL.Query()
	from, err := number(q.Get("from"), "from", 1, maxLine)
	if err != nil {
		return err
	}
	try, err := number(q.Get("try"), "try", 0, maxLine)
	if err != nil {
		return err
	}
	step, err := number(q.Get("step"), "step", 0, maxLine)
	if err != nil {
		return err
	}
	stamps := q.Get("timestamps")
	if stamps != "" && stamps != "0" && stamps != "1" {
		return invalid("timestamps is %q, and should be 0 or 1", cut(stamps, 30))
	}
	job, _, err := s.job(r)
	if err != nil {
		return err
	}
	out := &download{w: w, rc: http.NewResponseController(w), name: fmt.Sprintf("job-%d.log", job.ID)}
	buf := bufio.NewWriterSize(out, 64<<10)
	for l, err := range s.readLog(r.Context(), job.ID, int(try), int(from)-1) {
		if err != nil {
			return out.broken(s, r, err)
		}
		if step != 0 && int64(l.Step) != step {
			continue
		}
		if stamps == "1" {
			buf.WriteString(l.Time.UTC().Format(stamp))
		}
		buf.WriteString(l.Text)
		if err := buf.WriteByte('\n'); err != nil {
			return out.broken(s, r, err)
		}
	}
	if err := buf.Flush(); err != nil {
		return out.broken(s, r, err)
	}
	_, err = out.Write(nil) // the headers of an empty log
	return err
}

// readLog is LogReader.Read; a log that there is not is an empty one.
func (s *Server) readLog(ctx context.Context, job tgr.JobID, try, from int) iter.Seq2[tgr.LogLine, error] {
	return func(yield func(tgr.LogLine, error) bool) {
		for l, err := range s.cfg.Logs.Read(ctx, job, try, from) {
			if tgr.CodeOf(err) == tgr.NotFound || !yield(l, err) {
				return
			}
		}
	}
}

// download sends its headers with the first bytes, so that what fails before can still be answered as an
// error, and gives each write its own deadline, so that a log may take long but never stand still.
type download struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	name    string
	started bool
}

func (d *download) Write(b []byte) (int, error) {
	if !d.started {
		d.started = true
		h := d.w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Content-Disposition", `attachment; filename="`+d.name+`"`)
		h.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	}
	d.rc.SetWriteDeadline(time.Now().Add(streamWrite)) // not all writers have one
	return d.w.Write(b)
}

// broken ends a download that failed: with an answer if nothing was sent, else by cutting the connection, since
// half a log must not look whole.
func (d *download) broken(s *Server, r *request, err error) error {
	if !d.started {
		return err
	}
	if r.Context().Err() == nil && tgr.CodeOf(err) != "" {
		s.log.Error("log broke off", "path", r.URL.Path, "err", err)
	}
	panic(http.ErrAbortHandler)
}
