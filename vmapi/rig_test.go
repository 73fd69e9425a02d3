package vmapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/process"
)

// agentPath is the guest's agent, built once.
var agentPath string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tgr-vmapi-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	agentPath = filepath.Join(dir, "tgr-guest")
	build := exec.Command("go", "build", "-o", agentPath, "../cmd/tgr-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the agent: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

var testKey = []byte(strings.Repeat("k", minKey))

// rig is a server of ours over real HTTP, with a client whose every request and answer is held against the document.
type rig struct {
	t     *testing.T
	s     *Server
	url   string
	token string
	c     *Client
	spec  *spec
	dir   string // the machines' journal
}

func newRig(t *testing.T, change func(*Config)) *rig { return newRigOn(t, nil, change) }

// newRigOn is newRig with another provider around, or in place of, that of processes.
func newRigOn(t *testing.T, wrap func(vm.Provider) vm.Provider, change func(*Config)) *rig {
	t.Helper()
	dir := t.TempDir()
	open := processes(dir)
	cfg := Config{Key: testKey, Version: "test", Open: func(ctx context.Context, labels []string) (Backend, error) {
		back, err := open(ctx, labels)
		if wrap != nil {
			back.Provider = wrap(back.Provider)
		}
		return back, err
	}}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	hs := httptest.NewServer(s)
	r := &rig{t: t, s: s, url: hs.URL, dir: dir, spec: newSpec(t)}
	t.Cleanup(func() {
		hs.CloseClientConnections()
		s.Close()
		hs.Close()
		r.nothingLeft()
	})
	if r.token, err = NewToken(testKey, "tester", time.Hour); err != nil {
		t.Fatal(err)
	}
	r.c = r.client(r.token)
	return r
}

func (r *rig) client(token string) *Client {
	r.t.Helper()
	c, err := NewClient(ClientConfig{URL: r.url, Token: token, HTTP: &http.Client{Transport: r.spec}})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// nothingLeft looks for machines that outlived their server.
func (r *rig) nothingLeft() {
	left, err := os.ReadDir(r.dir)
	if err != nil && !os.IsNotExist(err) {
		r.t.Error(err)
	}
	for _, d := range left {
		r.t.Errorf("%s is left in the journal", d.Name())
	}
}

// start returns a machine that is ready.
func (r *rig) start() *Machine {
	r.t.Helper()
	m, err := r.c.Start(ctx(r.t), CreateRequest{Name: "machine of " + r.t.Name()})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := m.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return m
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return c
}

// raw sends a request that a client of ours would not, and returns status, headers and body.
func (r *rig) raw(method, path, body string, headers ...string) (int, http.Header, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(ctx(r.t), method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer.StatusCode, answer.Header, string(b)
}

// spec is a transport that holds what passes against the document.
type spec struct {
	t      *testing.T
	doc    *openapi3.T
	router routers.Router
	mu     sync.Mutex
	seen   map[string]bool // operations that were answered with success
}

func newSpec(t *testing.T) *spec {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openapiJSON)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		t.Fatal(err)
	}
	doc.Servers = nil // the router would take their address for a part of each path
	router, err := legacy.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &spec{t: t, doc: doc, router: router, seen: map[string]bool{}}
}

// RoundTrip implements http.RoundTripper.
func (s *spec) RoundTrip(r *http.Request) (*http.Response, error) {
	route, params, err := s.router.FindRoute(r)
	if err != nil {
		s.t.Errorf("%s %s is not in the document: %v", r.Method, r.URL, err)
		return http.DefaultTransport.RoundTrip(r)
	}
	options := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}
	in := &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route, Options: options}
	if r.Body == nil || r.Header.Get("Content-Type") != "application/json" {
		options.ExcludeRequestBody = true
		held := r.Clone(r.Context())
		held.Body = http.NoBody // a stream is not to be read here
		in.Request = held
	} else {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
		defer func(b []byte) { r.Body = io.NopCloser(bytes.NewReader(b)) }(b)
	}
	if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
		s.t.Errorf("request: %v", err)
	}
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	s.answered(in, route.Operation.OperationID, answer)
	return answer, nil
}

func (s *spec) answered(in *openapi3filter.RequestValidationInput, op string, answer *http.Response) {
	s.mu.Lock()
	s.seen[op] = s.seen[op] || answer.StatusCode < 300
	s.mu.Unlock()
	switch answer.Header.Get("Content-Type") {
	case "application/x-ndjson":
		answer.Body = &eventLines{ReadCloser: answer.Body, s: s}
	case "application/json":
		b, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		answer.Body = io.NopCloser(io.MultiReader(bytes.NewReader(b), errReader{err}))
		out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: answer.StatusCode, Header: answer.Header}
		out.SetBodyBytes(b)
		if err := openapi3filter.ValidateResponse(context.Background(), out); err != nil {
			s.t.Errorf("answer of %s: %v", op, err)
		}
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	return 0, io.EOF
}

// eventLines holds each line of a stream against the document.
type eventLines struct {
	io.ReadCloser
	s    *spec
	line []byte
}

func (l *eventLines) Read(b []byte) (int, error) {
	n, err := l.ReadCloser.Read(b)
	l.line = append(l.line, b[:n]...)
	for {
		line, rest, ok := bytes.Cut(l.line, []byte("\n"))
		if !ok {
			return n, err
		}
		l.line = rest
		var v any
		if err := json.Unmarshal(line, &v); err != nil {
			l.s.t.Errorf("event %q: %v", line, err)
		} else if err := l.s.doc.Components.Schemas["Event"].Value.VisitJSON(v); err != nil {
			l.s.t.Errorf("event: %v", err)
		}
	}
}

// openNothing is a host that cannot make machines.
func openNothing(context.Context, []string) (Backend, error) {
	return Backend{}, errors.New("there are no machines here")
}

// processes is a host whose machines are processes, and have the label linux.
func processes(dir string) func(context.Context, []string) (Backend, error) {
	back := Backend{Provider: process.New(process.Config{Agent: []string{agentPath}, Dir: dir}), Shared: true,
		Size: vm.Spec{VCPUs: 1, Memory: 1 << 30}, Place: func(m vm.VM) Place {
			return Place{Home: m.(interface{ Home() string }).Home(), Env: map[string]string{"PATH": os.Getenv("PATH")}}
		}}
	return func(_ context.Context, labels []string) (Backend, error) {
		if len(labels) > 0 && labels[0] != "linux" {
			return Backend{}, fmt.Errorf("no machine has the label %q", labels[0])
		}
		return back, nil
	}
}
