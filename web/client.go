package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// Client calls a server's API: the other end of Server. Its errors are *tgr.Error: those that the server sent
// keep their code, and a server that cannot be reached is Unavailable. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
	quiet time.Duration // how long a stream may say nothing, not even a heartbeat
	again time.Duration // before a stream is taken up again; doubles while that fails
}

// The bounds of a call that is not a stream or a log.
const (
	maxAnswer   = 64 << 20
	callTimeout = time.Minute
)

// NewClient makes a client of the server at base, such as http://127.0.0.1:3000. The token may be empty.
func NewClient(base, token string) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, tgr.Errorf("client", tgr.Invalid, "the server is %q, and should be a URL like http://127.0.0.1:3000", base)
	}
	if u.User != nil {
		return nil, tgr.Errorf("client", tgr.Invalid, "the server's URL should not hold credentials: there is the token for that")
	}
	return &Client{base: u, token: token, quiet: 45 * time.Second, again: 500 * time.Millisecond, http: &http.Client{
		// A redirect would take the token elsewhere, and the server sends none.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Runs lists runs. f.Limit 0 leaves the number to the server.
func (c *Client) Runs(ctx context.Context, f Filter) (RunList, error) {
	q := url.Values{}
	for name, v := range map[string]string{"repo": f.Repo, "workflow": f.Workflow, "branch": f.Branch, "event": f.Event,
		"status": string(f.Status), "delivery": string(f.Delivery)} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if f.Before != 0 {
		q.Set("before", f.Before.String())
	}
	if f.Limit != 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	return call[RunList](ctx, c, http.MethodGet, "/api/runs?"+q.Encode(), nil)
}

// Run returns a run with the jobs of an attempt; attempt 0 is the latest.
func (c *Client) Run(ctx context.Context, id tgr.RunID, attempt int) (RunDetail, error) {
	path := fmt.Sprintf("/api/runs/%d", id)
	if attempt != 0 {
		path += fmt.Sprintf("?attempt=%d", attempt)
	}
	return call[RunDetail](ctx, c, http.MethodGet, path, nil)
}

// Plan returns a run's plan: workflow.Plan as JSON.
func (c *Client) Plan(ctx context.Context, id tgr.RunID) (json.RawMessage, error) {
	return call[json.RawMessage](ctx, c, http.MethodGet, fmt.Sprintf("/api/runs/%d/plan", id), nil)
}

// Job returns a job.
func (c *Client) Job(ctx context.Context, id tgr.JobID) (tgr.Job, error) {
	return call[tgr.Job](ctx, c, http.MethodGet, fmt.Sprintf("/api/jobs/%d", id), nil)
}

// Cancel asks for a run, or one job of it, to be cancelled.
func (c *Client) Cancel(ctx context.Context, id tgr.RunID, r CancelRequest) (Accepted, error) {
	return call[Accepted](ctx, c, http.MethodPost, fmt.Sprintf("/api/runs/%d/cancel", id), r)
}

// Rerun asks for another attempt of a run.
func (c *Client) Rerun(ctx context.Context, id tgr.RunID, r Rerun) (Accepted, error) {
	return call[Accepted](ctx, c, http.MethodPost, fmt.Sprintf("/api/runs/%d/rerun", id), r)
}

// Ask has a model answer a question about a run.
func (c *Client) Ask(ctx context.Context, id tgr.RunID, question string) (tgr.Claim, error) {
	return call[tgr.Claim](ctx, c, http.MethodPost, fmt.Sprintf("/api/runs/%d/questions", id), Ask{question})
}

// Approve lets a run go on that waits for it, or rejects it.
func (c *Client) Approve(ctx context.Context, id tgr.RunID, a ApproveRequest) (Accepted, error) {
	return call[Accepted](ctx, c, http.MethodPost, fmt.Sprintf("/api/runs/%d/approve", id), a)
}

// Settings lists the secrets or variables of exactly one scope; secrets without their values.
func (c *Client) Settings(ctx context.Context, kind string, s tgr.Scope) ([]tgr.Setting, error) {
	q := url.Values{}
	for name, v := range map[string]string{"owner": s.Owner, "repo": s.Repo, "environment": s.Environment} {
		if v != "" {
			q.Set(name, v)
		}
	}
	list, err := call[SettingList](ctx, c, http.MethodGet, "/api/"+kind+"s?"+q.Encode(), nil)
	return list.Settings, err
}

// SetSetting sets a secret or a variable.
func (c *Client) SetSetting(ctx context.Context, kind string, s SettingRequest) (Done, error) {
	return call[Done](ctx, c, http.MethodPost, "/api/"+kind+"s", s)
}

// RemoveSetting removes a secret or a variable.
func (c *Client) RemoveSetting(ctx context.Context, kind string, s SettingRequest) (Done, error) {
	return call[Done](ctx, c, http.MethodPost, "/api/"+kind+"s/remove", s)
}

// Rotate has all secrets sealed with a new key.
func (c *Client) Rotate(ctx context.Context) (Done, error) {
	return call[Done](ctx, c, http.MethodPost, "/api/secrets/rotate", struct{}{})
}

// Environments lists the environments of a repository.
func (c *Client) Environments(ctx context.Context, repo string) ([]tgr.Environment, error) {
	list, err := call[EnvironmentList](ctx, c, http.MethodGet, "/api/environments?"+url.Values{"repo": {repo}}.Encode(), nil)
	return list.Environments, err
}

// SetEnvironment says what jobs for an environment wait for.
func (c *Client) SetEnvironment(ctx context.Context, e tgr.Environment) (Done, error) {
	return call[Done](ctx, c, http.MethodPost, "/api/environments", e)
}

// RemoveEnvironment forgets an environment, with its secrets and variables.
func (c *Client) RemoveEnvironment(ctx context.Context, repo, name string) (Done, error) {
	return call[Done](ctx, c, http.MethodPost, "/api/environments/remove", EnvironmentName{repo, name})
}

// Dispatch starts what a workflow_dispatch event would.
func (c *Client) Dispatch(ctx context.Context, d Dispatch) (Accepted, error) {
	return call[Accepted](ctx, c, http.MethodPost, "/api/dispatch", d)
}

// LogOptions choose what of a log is read. The zero value is all of it.
type LogOptions struct {
	Try        int  // of the job, from 1; 0: the latest
	From       int  // number of the first line; 0: 1
	Step       int  // only this step's lines; 0: all
	Timestamps bool // each line begins with its time
}

// Log returns what a job has logged as text. The caller closes it. A log that breaks off is an error, not an end.
func (c *Client) Log(ctx context.Context, job tgr.JobID, o LogOptions) (io.ReadCloser, error) {
	q := url.Values{}
	if o.Try > 0 {
		q.Set("try", strconv.Itoa(o.Try))
	}
	if o.From > 0 {
		q.Set("from", strconv.Itoa(o.From))
	}
	if o.Step > 0 {
		q.Set("step", strconv.Itoa(o.Step))
	}
	if o.Timestamps {
		q.Set("timestamps", "1")
	}
	answer, err := c.do(ctx, http.MethodGet, fmt.Sprintf("/api/jobs/%d/log?%s", job, q.Encode()), nil, nil)
	if err != nil {
		return nil, err
	}
	return answer.Body, nil
}

// call makes one call and decodes its answer.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var v T
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return v, fmt.Errorf("encode %T: %w", body, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := c.do(ctx, method, path, b, nil)
	if err != nil {
		return v, err
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(&v); err != nil {
		return v, &tgr.Error{Op: "client", Code: tgr.Unavailable, Message: "the answer of " + c.base.String() + " cannot be read", Err: err}
	}
	return v, nil
}

// do sends a request and returns the answer if it is a success. The caller closes its body.
func (c *Client) do(ctx context.Context, method, path string, body []byte, header http.Header) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.base.String(), "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, tgr.Errorf("client", tgr.Invalid, "%w", err)
	}
	for name, values := range header {
		r.Header[name] = values
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, &tgr.Error{Op: "client", Code: tgr.Unavailable, Message: "cannot reach the server at " + c.base.String() + "; is tgr serve running there? --server and TGR_SERVER say where it is", Err: err}
	}
	if answer.StatusCode/100 == 2 {
		return answer, nil
	}
	defer answer.Body.Close()
	var e ErrorBody
	if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&e); err != nil || e.Error.Code == "" {
		return nil, tgr.Errorf("client", tgr.Unavailable, "%s answers %s, which a tgr server does not", c.base, answer.Status)
	}
	return nil, &tgr.Error{Op: "client", Code: e.Error.Code, Message: Plain(e.Error.Message)}
}

// Event is one event of a stream.
type Event struct {
	ID   string
	Name string
	Data []byte // JSON
}

// maxEvent bounds one event: a log line of 1 MiB, each byte of it escaped.
const maxEvent = 8 << 20

// attempts is how often in a row a stream is taken up again without a single event.
const attempts = 8

// Follow calls line for each line of a job's log from number from (0: the first), past the end of what has been
// logged until the job has ended, and returns how it did. It takes a broken stream up again where it was, each
// line once. A job that is tried again begins a new log: the line's Try tells. An error of line ends it.
func (c *Client) Follow(ctx context.Context, job tgr.JobID, from int, line func(LogLine) error) (StreamEnd, error) {
	next, try := max(from, 1), 0
	return c.stream(ctx, fmt.Sprintf("/api/jobs/%d/log/stream?from=%d", job, next), func(e Event) error {
		if e.Name != "line" {
			return nil
		}
		var l LogLine
		if err := json.Unmarshal(e.Data, &l); err != nil {
			return tgr.Errorf("client", tgr.Unavailable, "a line of job %d cannot be read: %w", job, err)
		}
		if l.Try == try && l.Line < next {
			return nil
		}
		next, try = l.Line+1, l.Try
		return line(l)
	})
}

// Watch calls event for the events run, job and step of a run until it has ended, and returns how it did.
// It takes a broken stream up again, and then all states come again.
func (c *Client) Watch(ctx context.Context, run tgr.RunID, event func(Event) error) (StreamEnd, error) {
	return c.stream(ctx, fmt.Sprintf("/api/runs/%d/events", run), event)
}

// stream reads a stream to its event done, over as many connections as it takes.
func (c *Client) stream(ctx context.Context, path string, event func(Event) error) (StreamEnd, error) {
	last, failures, wait := "", 0, c.again
	for {
		end, events, err := c.connection(ctx, path, &last, event)
		var stopped *stopError
		switch {
		case errors.As(err, &stopped):
			return StreamEnd{}, stopped.err
		case ctx.Err() != nil:
			return StreamEnd{}, context.Cause(ctx)
		case end != nil:
			return *end, nil
		case err != nil && tgr.CodeOf(err) != tgr.Unavailable && tgr.CodeOf(err) != tgr.Limit:
			return StreamEnd{}, err
		}
		if failures++; events > 0 {
			failures, wait = 0, c.again
		}
		if failures >= attempts {
			return StreamEnd{}, err
		}
		select {
		case <-ctx.Done():
			return StreamEnd{}, context.Cause(ctx)
		case <-time.After(wait):
		}
		wait = min(2*wait, 10*time.Second)
	}
}

// stopError is an error of the caller's own function: nothing to try again for.
type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }

// connection reads one connection's worth of a stream, and says how many events that was.
func (c *Client) connection(ctx context.Context, path string, last *string, event func(Event) error) (end *StreamEnd, events int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	header := http.Header{"Accept": {"text/event-stream"}}
	if *last != "" {
		header.Set("Last-Event-ID", *last)
	}
	quiet := time.AfterFunc(c.quiet, cancel) // a connection that died without a word
	defer quiet.Stop()
	answer, err := c.do(ctx, http.MethodGet, path, nil, header)
	if err != nil {
		return nil, 0, err
	}
	defer answer.Body.Close()
	err = readEvents(answer.Body, func(e Event) error {
		quiet.Reset(c.quiet)
		switch e.Name {
		case "": // a heartbeat
			return nil
		case "done":
			end = &StreamEnd{}
			if err := json.Unmarshal(e.Data, end); err != nil {
				return tgr.Errorf("client", tgr.Unavailable, "the end of the stream cannot be read: %w", err)
			}
			return io.EOF
		case "failed":
			var d ErrorDetail
			if err := json.Unmarshal(e.Data, &d); err != nil {
				return tgr.Errorf("client", tgr.Unavailable, "the stream failed, and does not say how: %w", err)
			}
			return &tgr.Error{Op: "client", Code: d.Code, Message: Plain(d.Message)}
		}
		events++
		if e.ID != "" {
			*last = e.ID
		}
		if err := event(e); err != nil {
			return &stopError{err}
		}
		return nil
	})
	if end == nil && err == nil {
		err = tgr.Errorf("client", tgr.Unavailable, "the server at %s ended the stream early", c.base)
	}
	if end != nil {
		err = nil
	}
	return end, events, err
}

// readEvents parses a stream of server-sent events and calls event for each, and with an empty Event for each
// comment. It ends with the stream, or with the first error; io.EOF from event ends it without one.
func readEvents(r io.Reader, event func(Event) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), maxEvent)
	var e Event
	for lines.Scan() {
		field, value, _ := bytes.Cut(lines.Bytes(), []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		emit := false
		switch {
		case len(lines.Bytes()) == 0:
			if emit = e.Data != nil; !emit {
				e = Event{}
			}
		case len(field) == 0:
			if err := event(Event{}); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		case string(field) == "event":
			e.Name = string(value)
		case string(field) == "id":
			e.ID = string(value)
		case string(field) == "data":
			if len(e.Data)+len(value) > maxEvent {
				return tgr.Errorf("client", tgr.Unavailable, "an event is larger than %d bytes", maxEvent)
			}
			if e.Data != nil {
				e.Data = append(e.Data, '\n')
			}
			e.Data = append(append(make([]byte, 0, len(e.Data)+len(value)), e.Data...), value...)
		}
		if emit {
			if e.Name == "" {
				e.Name = "message"
			}
			err := event(e)
			e = Event{}
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
	if err := lines.Err(); err != nil {
		return &tgr.Error{Op: "client", Code: tgr.Unavailable, Message: "the stream broke off", Err: err}
	}
	return nil
}
