package results

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terraphim/tgr"
)

// clock is a clock that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newClock() *clock { return &clock{now: time.Now().Truncate(time.Second)} }

// opened returns a Service on a folder of its own, unless cfg names one.
func opened(t testing.TB, cfg Config) *Service {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// jobOn is a job of a push to a branch of repository 7, which is o/r.
func jobOn(id tgr.JobID, branch string) Job {
	return Job{ID: id, Lease: fmt.Sprint("lease ", id), IDToken: true, Run: tgr.Run{
		ID: 100 + tgr.RunID(id), Number: 3, Attempt: 1, WorkflowFile: ".github/workflows/ci.yml", WorkflowName: "CI",
		Event: tgr.Event{Name: "push", Ref: "refs/heads/" + branch, SHA: strings.Repeat("a", 40), Actor: "octocat", ActorID: 1,
			Repo:    tgr.Repo{ID: 7, FullName: "o/r", DefaultBranch: "main"},
			Payload: json.RawMessage(`{"repository":{"owner":{"id":42}}}`)},
	}}
}

// pullOn is a job of a pull request to main.
func pullOn(id tgr.JobID, number int, forked bool) Job {
	j := jobOn(id, "")
	ev := &j.Run.Event
	ev.Name, ev.Ref, ev.BaseRef, ev.HeadRef, ev.Forked = "pull_request", fmt.Sprintf("refs/pull/%d/merge", number), "main", "topic", forked
	return j
}

// client is a job that talks to its services over a socket.
type client struct {
	t    testing.TB
	x    *Session
	base string
	env  map[string]string
}

// began begins a session and serves it on a port of loopback.
func began(t testing.TB, s *Service, j Job) *client {
	t.Helper()
	x, err := s.Begin(context.Background(), j)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- x.Serve(l) }()
	t.Cleanup(func() {
		x.halt()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	env, err := x.Env(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return &client{t: t, x: x, base: "http://" + l.Addr().String(), env: env}
}

// response is an answer that was read.
type response struct {
	status int
	header http.Header
	body   []byte
}

func (r response) String() string { return fmt.Sprintf("%d %.300s", r.status, r.body) }

// field is a top-level field of a JSON answer, as text.
func (r response) field(name string) string {
	var m map[string]any
	if json.Unmarshal(r.body, &m) != nil || m[name] == nil {
		return ""
	}
	return fmt.Sprint(m[name])
}

// do sends a request. headers alternate names and values.
func (c *client) do(method, url string, body io.Reader, headers ...string) response {
	c.t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return response{status: -1, body: []byte(err.Error())}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return response{status: -1, body: []byte(err.Error())}
	}
	return response{resp.StatusCode, resp.Header, b}
}

// call calls a Twirp method with the job's token.
func (c *client) call(service, method string, fields map[string]any) response {
	c.t.Helper()
	b, err := json.Marshal(fields)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.do("POST", c.base+"/twirp/github.actions.results.api.v1."+service+"/"+method, bytes.NewReader(b),
		"Content-Type", "application/json", "Authorization", "Bearer "+c.env["ACTIONS_RUNTIME_TOKEN"])
}

func (c *client) cache(method string, fields map[string]any) response {
	c.t.Helper()
	return c.call("CacheService", method, fields)
}

// artifact calls a method of the artifact service with the job's ids.
func (c *client) artifact(method string, fields map[string]any) response {
	c.t.Helper()
	m := map[string]any{"workflow_run_backend_id": c.x.runID(), "workflow_job_run_backend_id": c.x.job.ID.String()}
	for k, v := range fields {
		m[k] = v
	}
	return c.call("ArtifactService", method, m)
}

// want fails the test unless the answer has this status, and returns it.
func (c *client) want(status int, r response) response {
	c.t.Helper()
	if r.status != status {
		c.t.Fatalf("got %s, want status %d", r, status)
	}
	return r
}

const version = "b06ae72480aa359fdf8ee4fe3014a4c434c1a5dea9839c37b159af0f8478b2f5"

// save saves a cache as the client does, and returns the last answer.
func (c *client) save(key string, data []byte) response {
	c.t.Helper()
	r := c.cache("CreateCacheEntry", map[string]any{"key": key, "version": version})
	url := r.field("signed_upload_url")
	if r.status != 200 || url == "" {
		return r
	}
	if r := c.do("PUT", url, bytes.NewReader(data), "x-ms-blob-type", "BlockBlob"); r.status != 201 {
		return r
	}
	return c.cache("FinalizeCacheEntryUpload", map[string]any{"key": key, "version": version, "size_bytes": fmt.Sprint(len(data))})
}

// restore returns the key and the bytes that keys yield, "" for a miss.
func (c *client) restore(keys ...string) (string, []byte) {
	c.t.Helper()
	r := c.want(200, c.cache("GetCacheEntryDownloadURL", map[string]any{"key": keys[0], "restore_keys": keys[1:], "version": version}))
	if r.field("ok") != "true" {
		return "", nil
	}
	return r.field("matched_key"), c.want(200, c.do("GET", r.field("signed_download_url"), nil)).body
}

// upload uploads an artifact in blocks, and returns the last answer.
func (c *client) upload(name string, blocks ...string) response {
	c.t.Helper()
	r := c.artifact("CreateArtifact", map[string]any{"name": name, "version": 7, "mime_type": "application/zip"})
	if r.status != 200 {
		return r
	}
	url := r.field("signed_upload_url")
	list := "<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>"
	for i, b := range blocks {
		id := blockID(i)
		if r := c.do("PUT", url+"&comp=block&blockid="+id, strings.NewReader(b)); r.status != 201 {
			return r
		}
		list += "<Latest>" + id + "</Latest>"
	}
	if r := c.do("PUT", url+"&comp=blocklist", strings.NewReader(list+"</BlockList>")); r.status != 201 {
		return r
	}
	return c.artifact("FinalizeArtifact", map[string]any{"name": name, "size": fmt.Sprint(len(strings.Join(blocks, "")))})
}

func blockID(i int) string {
	const digits = "0123456789abcdef"
	return "YmxvY2s" + string([]byte{'A' + byte(i/16%16), digits[i%16]}) + "AAA"
}
