// Package vmapitest is a small real server with the habits of fcctl-web, as its clients recorded them: what a client
// of the VM management API has to cope with. Its machines are namespaces of this host, so that scripts really run.
package vmapitest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Habits are what a Server does to its clients. The zero value is a server that does nothing unpleasant but for what
// fcctl-web always does: it ignores the working directory, and knows nothing of streams and files.
type Habits struct {
	Token     string // that is asked for; "": none
	BootPolls int    // how often a machine is still Creating when it is asked about
	NotReady  int    // scripts in a new machine that fail with 255, before its ssh is there
	LoseEvery int    // every so many scripts run, and their answer is 255 because ssh broke off; 0: none
	Capacity  int    // machines at once; 0: no limit
	Fails     bool   // machines fail to boot
	NoStatus  bool   // exit_code is left out
	OnlyMS    bool   // timeout_ms is honoured, and timeout_seconds ignored; else the other way round
	Forgets   bool   // a deletion is answered with 404, in plain text
}

// Server is a fcctl-web on loopback. Close ends it and its machines.
type Server struct {
	URL    string
	habits Habits
	http   *httptest.Server

	mu       sync.Mutex
	machines map[string]*machine
	made     int
	scripts  int
	errs     []error
}

type machine struct {
	id, kind string
	asked    int // about it
	scripts  int
	init     *exec.Cmd
	pid      int // of the first process inside
}

// New starts a server. It needs root, for namespaces: the error says so.
func New(h Habits) (*Server, error) {
	s := &Server{habits: h, machines: map[string]*machine{}}
	probe, err := s.boot("probe", "")
	if err != nil {
		return nil, fmt.Errorf("machines that are namespaces need root, unshare and nsenter: %w", err)
	}
	if err := probe.end(); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, map[string]any{"service": "fcctl-web", "status": "healthy", "timestamp": time.Now().Format(time.RFC1123)})
	})
	mux.HandleFunc("GET /api/vms", s.auth(s.list))
	mux.HandleFunc("POST /api/vms", s.auth(s.create))
	mux.HandleFunc("GET /api/vms/{id}", s.auth(s.get))
	mux.HandleFunc("DELETE /api/vms/{id}", s.auth(s.remove))
	mux.HandleFunc("POST /api/llm/execute", s.auth(s.execute))
	s.http = httptest.NewServer(mux)
	s.URL = s.http.URL
	return s, nil
}

// Machines is how many there are, and how many were ever made.
func (s *Server) Machines() (now, ever int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.machines), s.made
}

// Close ends the server and its machines, and reports what went wrong inside it.
func (s *Server) Close() error {
	s.http.CloseClientConnections()
	s.http.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := s.errs
	for id, m := range s.machines {
		errs = append(errs, m.end())
		delete(s.machines, id)
	}
	return errors.Join(errs...)
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, format string, args ...any) {
	reply(w, status, map[string]string{"error": fmt.Sprintf(format, args...)})
}

func (s *Server) auth(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.habits.Token != "" && r.Header.Get("Authorization") != "Bearer "+s.habits.Token {
			refuse(w, http.StatusUnauthorized, "Invalid token")
			return
		}
		next(w, r)
	}
}

func (s *Server) list(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	vms := []any{}
	for _, m := range s.machines {
		vms = append(vms, s.view(m))
	}
	reply(w, 200, map[string]any{"user": "test", "total": len(vms), "vms": vms, "usage": map[string]any{
		"at_capacity": s.full(), "current_vms": len(vms), "max_vms": s.habits.Capacity}})
}

func (s *Server) full() bool { return s.habits.Capacity > 0 && len(s.machines) >= s.habits.Capacity }

func (s *Server) view(m *machine) map[string]any {
	status := "Creating"
	if m.asked > s.habits.BootPolls {
		status = "running"
		if s.habits.Fails {
			status = "failed"
		}
	}
	return map[string]any{"id": m.id, "name": m.id, "vm_type": m.kind, "status": status, "ip_address": "172.26.0.2"}
}

func (s *Server) create(w http.ResponseWriter, r *http.Request) {
	var req struct {
		VMType string `json:"vm_type"`
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.VMType == "" {
		refuse(w, 400, "vm_type is required")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full() {
		refuse(w, http.StatusForbidden, "VM limit reached: at_capacity (%d)", s.habits.Capacity)
		return
	}
	id := make([]byte, 4)
	rand.Read(id)
	m, err := s.boot(fmt.Sprintf("vm-%x", id), req.VMType)
	if err != nil {
		refuse(w, 500, "%v", err)
		return
	}
	s.machines[m.id] = m
	s.made++
	reply(w, 201, map[string]any{"id": m.id, "name": m.id, "status": "Creating", "vm_type": m.kind, "created_at": time.Now().Format(time.RFC3339)})
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machines[r.PathValue("id")]
	if m == nil {
		refuse(w, 404, "VM not found")
		return
	}
	m.asked++
	reply(w, 200, s.view(m))
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machines[r.PathValue("id")]
	delete(s.machines, r.PathValue("id"))
	if m != nil {
		if err := m.end(); err != nil {
			s.errs = append(s.errs, err)
		}
	}
	if m == nil || s.habits.Forgets {
		http.Error(w, "Not Found", 404)
		return
	}
	reply(w, 200, map[string]string{"message": "deleted"})
}

func (s *Server) execute(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Language       string  `json:"language"`
		Code           string  `json:"code"`
		VMID           string  `json:"vm_id"`
		TimeoutSeconds float64 `json:"timeout_seconds"`
		TimeoutMS      float64 `json:"timeout_ms"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&req); err != nil || req.Language != "bash" {
		refuse(w, 400, "bad request")
		return
	}
	s.mu.Lock()
	m := s.machines[req.VMID]
	if m == nil {
		s.mu.Unlock()
		refuse(w, 404, "VM not found")
		return
	}
	m.scripts++
	s.scripts++
	early := m.scripts <= s.habits.NotReady
	lose := s.habits.LoseEvery > 0 && s.scripts%s.habits.LoseEvery == 0
	s.mu.Unlock()
	answer := map[string]any{"execution_id": "x", "vm_id": m.id, "stdout": "", "stderr": "", "duration_ms": 1, "error": nil}
	if early {
		answer["exit_code"], answer["stderr"] = 255, "ssh: connect to host 172.26.0.2 port 22: Connection refused"
		reply(w, 200, answer)
		return
	}
	limit := 30 * time.Second // what it would give a script that names no time it honours
	if s.habits.OnlyMS && req.TimeoutMS > 0 {
		limit = time.Duration(req.TimeoutMS) * time.Millisecond
	} else if !s.habits.OnlyMS && req.TimeoutSeconds > 0 {
		limit = time.Duration(req.TimeoutSeconds * float64(time.Second))
	}
	code, out, errout := m.run(req.Code, limit)
	answer["exit_code"], answer["stdout"], answer["stderr"] = code, out, errout
	if lose {
		answer["exit_code"], answer["stdout"], answer["stderr"] = 255, "", "client_loop: send disconnect: Broken pipe"
	}
	if s.habits.NoStatus {
		delete(answer, "exit_code")
	}
	reply(w, 200, answer)
}

// boot makes a machine: namespaces of processes and mounts, with a /tmp and a /root of its own. Its first process waits for the
// end of a pipe of ours, so that it goes with whoever made it, however that ends, and costs nothing when all else in it was killed.
func (s *Server) boot(id, kind string) (*machine, error) {
	m := &machine{id: id, kind: kind}
	m.init = exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c",
		"mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /root && echo up && read -r")
	m.init.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
	if _, err := m.init.StdinPipe(); err != nil { // open until Wait, or until we are no more
		return nil, err
	}
	out, err := m.init.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.init.Start(); err != nil {
		return nil, err
	}
	up := make([]byte, 3)
	if _, err := io.ReadFull(out, up); err != nil {
		return nil, errors.Join(errors.New("the namespaces did not come up"), m.end())
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", m.init.Process.Pid, m.init.Process.Pid))
	if err == nil {
		m.pid, err = strconv.Atoi(strings.TrimSpace(string(children)))
	}
	if err != nil {
		return nil, errors.Join(err, m.end())
	}
	return m, nil
}

// end kills everything in the machine.
func (m *machine) end() error {
	if err := m.init.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	m.init.Wait() // it was killed, which is an error of no interest
	return nil
}

// run runs a script as ssh would: in /root, and no matter what becomes of what it leaves in the background.
func (m *machine) run(script string, limit time.Duration) (code int, stdout, stderr string) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(m.pid), "-m", "-p", "-w/root", "bash", "-c", script)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root"}
	var out, errout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errout
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.Exited():
		code = exit.ExitCode()
	default:
		code = 124
	}
	return code, out.String(), errout.String()
}
