package firecracker

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	"go.yaml.in/yaml/v4"
	"golang.org/x/sys/unix"
)

// The stand-in is a program that behaves like Firecracker towards whoever drives it, and has no virtual machine: it
// holds every call to Firecracker's own description of its API, refuses unknown fields, enforces what may be said
// before the boot and what after it, ends when a snapshot does not load, speaks the handshake of its vsock socket, and
// starts the real agent behind that. What only a real machine has, such as the memory of a snapshot, it has not.

const (
	standinRole    = "STANDIN"         // firecracker, jailer, or a server that has a machine and is killed
	standinSpec    = "STANDIN_SPEC"    // path of the description
	standinAgent   = "STANDIN_AGENT"   // path of tgr-guest
	standinVersion = "STANDIN_VERSION" // what it says that it is
	standinProbe   = "STANDIN_PROBE"   // what its guest says when it is only to say that it has booted
	standinUID     = "STANDIN_UID"     // whose permissions it has
)

func TestMain(m *testing.M) {
	switch os.Getenv(standinRole) {
	case "firecracker":
		os.Exit(standin(os.Args[1:]))
	case "jailer":
		os.Exit(standinJailer(os.Args[1:]))
	case "owner":
		os.Exit(owner(os.Args[1:]))
	}
	var err error
	if builds, err = os.MkdirTemp("", "standin-builds-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(builds)
	os.Exit(code)
}

// builds is a folder for the agent, which all tests share.
var builds string

// standinJailer is the jailer without the chroot: it makes the same folder, checks the same, and starts the program in
// it, which then only gets at what that user would.
//
// https://github.com/firecracker-microvm/firecracker/blob/v1.16.1/docs/jailer.md
func standinJailer(args []string) int {
	fail := func(format string, a ...any) int {
		fmt.Fprintf(os.Stderr, "jailer: "+format+"\n", a...)
		return 1
	}
	flags := flag.NewFlagSet("jailer", flag.ContinueOnError)
	id, file := flags.String("id", "", ""), flags.String("exec-file", "", "")
	uid, gid := flags.Int("uid", -1, ""), flags.Int("gid", -1, "")
	base, version := flags.String("chroot-base-dir", "/srv/jailer", ""), flags.Int("cgroup-version", 1, "")
	parent, netns := flags.String("parent-cgroup", "", ""), flags.String("netns", "", "")
	var limits, cgroups []string
	flags.Func("resource-limit", "", func(s string) error { limits = append(limits, s); return nil })
	flags.Func("cgroup", "", func(s string) error { cgroups = append(cgroups, s); return nil })
	if err := flags.Parse(args); err != nil {
		return 1
	}
	if !regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`).MatchString(*id) {
		return fail("invalid instance ID %q", *id)
	}
	if *uid < 1 || *gid < 1 || !filepath.IsAbs(*file) || *version != 2 || os.Geteuid() != 0 {
		return fail("uid %d, gid %d, exec-file %q, cgroup-version %d as user %d", *uid, *gid, *file, *version, os.Geteuid())
	}
	for _, c := range cgroups {
		if key, value, ok := strings.Cut(c, "="); !ok || value == "" || strings.Count(key, ".") != 1 || *parent == "" {
			return fail("cgroup %q", c)
		}
	}
	for _, l := range limits {
		if !regexp.MustCompile(`^(no-file|fsize)=\d+$`).MatchString(l) {
			return fail("resource limit %q", l)
		}
	}
	name := filepath.Base(*file)
	root := filepath.Join(*base, name, *id, "root")
	for _, dir := range []string{"dev/net", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return fail("%v", err)
		}
	}
	if err := errors.Join(os.Chown(root, *uid, *gid), os.Chdir(root), os.WriteFile(name+".pid", []byte(strconv.Itoa(os.Getpid())), 0o600)); err != nil {
		return fail("%v", err)
	}
	if *netns != "" {
		runtime.LockOSThread() // exec keeps the thread's namespace
		ns, err := os.Open(*netns)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			return fail("%v", err)
		}
	}
	env := []string{standinUID + "=" + strconv.Itoa(*uid)} // all else is cleared
	argv := append([]string{name, "--id", *id, "--start-time-us", "1", "--start-time-cpu-us", "1"}, flags.Args()...)
	return fail("exec %s: %v", *file, syscall.Exec(*file, argv, env))
}

// fault is a call that is refused.
type fault struct {
	status int
	said   string
}

func (f *fault) Error() string { return f.said }

func faultf(format string, args ...any) error { return &fault{400, fmt.Sprintf(format, args...)} }

// vmm is the state of the stand-in.
type vmm struct {
	id, version string
	uid         int
	doc         *openapi3.T

	mu      sync.Mutex // one call at a time
	state   string
	once    map[string]bool            // what may be said once, and was
	config  map[string]json.RawMessage // what was said before the boot, by path
	mmds    map[string]any
	drives  []string
	vsock   string
	agent   *os.Process
	guest   string // socket that the agent listens on
	private string // folder of the stand-in's own
}

func standin(args []string) int {
	flags := flag.NewFlagSet("firecracker", flag.ContinueOnError)
	id, socket := flags.String("id", "anonymous-instance", ""), flags.String("api-sock", "/run/firecracker.socket", "")
	version := flags.Bool("version", false, "")
	flags.Int("start-time-us", 0, "")
	flags.Int("start-time-cpu-us", 0, "")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return 153
	}
	v := &vmm{id: *id, version: os.Getenv(standinVersion), uid: -1, state: NotStarted, once: map[string]bool{},
		config: map[string]json.RawMessage{}}
	if *version {
		fmt.Printf("Firecracker v%s\n\nSupported snapshot data format versions: v8.0.0\n", v.version)
		return 0
	}
	if s := os.Getenv(standinUID); s != "" {
		v.uid, _ = strconv.Atoi(s)
	}
	err := v.serve(*socket)
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func (v *vmm) serve(socket string) (err error) {
	if v.doc, err = description(os.Getenv(standinSpec)); err != nil {
		return err
	}
	if v.private, err = os.MkdirTemp("", "standin-"); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return http.Serve(l, v)
}

// description reads Firecracker's own, and closes every object that names its properties.
func description(path string) (*openapi3.T, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var tree any
	if err := yaml.Unmarshal(b, &tree); err != nil {
		return nil, err
	}
	if b, err = json.Marshal(jsonable(tree)); err != nil {
		return nil, err
	}
	b = []byte(strings.ReplaceAll(string(b), `"Trace",false]`, `"Trace","Off"]`)) // YAML takes Off for a boolean
	var doc openapi2.T
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	v3, err := openapi2conv.ToV3(&doc)
	if err != nil {
		return nil, err
	}
	closed := false
	for _, s := range v3.Components.Schemas {
		if len(s.Value.Properties) > 0 {
			s.Value.AdditionalProperties = openapi3.AdditionalProperties{Has: &closed}
		}
	}
	return v3, nil
}

// jsonable makes the keys of mappings, such as the status 200, strings.
func jsonable(tree any) any {
	switch node := tree.(type) {
	case map[any]any:
		out := map[string]any{}
		for k, v := range node {
			out[fmt.Sprint(k)] = jsonable(v)
		}
		return out
	case map[string]any:
		for k, v := range node {
			node[k] = jsonable(v)
		}
	case []any:
		for i, v := range node {
			node[i] = jsonable(v)
		}
	}
	return tree
}

// ServeHTTP answers one call.
func (v *vmm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	reply, err := v.answer(r)
	status := http.StatusOK
	if err != nil {
		status, reply = http.StatusBadRequest, map[string]string{"fault_message": err.Error()}
	}
	var f *fault
	if errors.As(err, &f) {
		status = f.status
	}
	if reply == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	b, _ := json.Marshal(reply)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b)
	if err != nil && r.URL.Path == "/snapshot/load" {
		http.NewResponseController(w).Flush()
		os.Exit(1) // a process whose load failed is of no more use
	}
}

func (v *vmm) answer(r *http.Request) (any, error) {
	item, path, id := v.route(r.URL.Path)
	if item == nil {
		return nil, faultf("Invalid request method and/or path: %s %s.", r.Method, r.URL.Path)
	}
	op := item.GetOperation(r.Method)
	if op == nil {
		return nil, faultf("Invalid request method and/or path: %s %s.", r.Method, r.URL.Path)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil || len(body) > maxBody {
		return nil, &fault{413, "Payload too large"}
	}
	if err := conforms(op, r.Method, body); err != nil {
		return nil, err
	}
	if id != "" {
		var got map[string]any
		json.Unmarshal(body, &got)
		if key := map[string]string{"drives": "drive_id", "pmem": "id", "network-interfaces": "iface_id"}[strings.Split(path, "/")[1]]; got[key] != id {
			return nil, faultf("The id from the path [%s] does not match the id from the body [%v]!", id, got[key])
		}
	}
	if r.Method == http.MethodGet {
		return v.tell(path)
	}
	return nil, v.act(r.Method, path, r.URL.Path, body)
}

// route finds the description's entry for a path, and the ID in it.
func (v *vmm) route(path string) (item *openapi3.PathItem, pattern, id string) {
	if item := v.doc.Paths.Value(path); item != nil {
		return item, path, ""
	}
	dir, id := filepath.Split(path)
	for pattern, item := range v.doc.Paths.Map() {
		if strings.HasPrefix(pattern, dir+"{") && deviceID().MatchString(id) {
			return item, pattern, id
		}
	}
	return nil, "", ""
}

// conforms holds a body to the description. A PATCH may leave out what is required of a PUT.
func conforms(op *openapi3.Operation, method string, body []byte) error {
	if op.RequestBody == nil {
		if len(body) > 0 {
			return faultf("the request has a body, and there is none")
		}
		return nil
	}
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		return faultf("An error occurred when deserializing the json body of a request: %v.", err)
	}
	schema := *op.RequestBody.Value.Content.Get("application/json").Schema.Value
	if method == http.MethodPatch {
		schema.Required = nil
	}
	if err := schema.VisitJSON(value); err != nil {
		return faultf("An error occurred when deserializing the json body of a request: %v.", err)
	}
	return nil
}

func (v *vmm) tell(path string) (any, error) {
	switch path {
	case "/":
		return InstanceInfo{ID: v.id, State: v.state, Version: v.version, App: "Firecracker"}, nil
	case "/version":
		return map[string]string{"firecracker_version": v.version}, nil
	case "/vm/config":
		all := map[string]any{"drives": v.drives}
		for path, body := range v.config {
			all[strings.TrimPrefix(path, "/")] = body
		}
		return all, nil
	case "/mmds":
		return v.mmds, nil
	case "/balloon/statistics":
		return BalloonStats{TargetMiB: 64, ActualMiB: 64, Total: 1 << 30}, nil
	case "/balloon/hinting/status":
		return HintingStatus{Host: 1}, nil
	}
	body, ok := v.config[path]
	if !ok {
		return nil, faultf("%s is not configured", path)
	}
	return body, nil
}

// act does what a call asks for, if this is the time for it.
func (v *vmm) act(method, pattern, path string, body []byte) error {
	before, running := v.state == NotStarted, v.state != NotStarted
	preBoot := method == http.MethodPut && !strings.HasPrefix(pattern, "/snapshot") && pattern != "/actions" && pattern != "/mmds"
	switch {
	case preBoot && running:
		return faultf("The requested operation is not supported after starting the microVM.")
	case method == http.MethodPatch && before && pattern != "/machine-config" && pattern != "/mmds":
		return faultf("The requested operation is not supported before starting the microVM.")
	case method == http.MethodPatch && running && pattern == "/machine-config":
		return faultf("The requested operation is not supported after starting the microVM.")
	}
	switch pattern {
	case "/actions":
		return v.action(body)
	case "/vm":
		return v.setState(body)
	case "/snapshot/create":
		return v.create(body)
	case "/snapshot/load":
		return v.load(body)
	case "/mmds":
		return v.setMMDS(method, body)
	case "/logger", "/metrics":
		if v.once[pattern] {
			return faultf("%s was configured already", pattern)
		}
		v.once[pattern] = true
	}
	if err := v.paths(body); err != nil {
		return err
	}
	if method == http.MethodPatch {
		if _, ok := v.config[path]; !ok && pattern != "/balloon/hinting/start" && pattern != "/balloon/hinting/stop" && pattern != "/balloon/statistics" {
			return faultf("there is no device %s", path)
		}
		return nil
	}
	if err := v.limits(pattern, body); err != nil {
		return err
	}
	v.config[path] = body
	return nil
}

// limits are those that the description does not have.
func (v *vmm) limits(pattern string, body []byte) error {
	switch pattern {
	case "/machine-config":
		var m Machine
		json.Unmarshal(body, &m)
		if m.MemoryMiB == 0 || m.SMT && m.VCPUs > 1 && m.VCPUs%2 != 0 {
			return faultf("The memory size (MiB) or the vCPU number is invalid.")
		}
	case "/drives/{drive_id}":
		var d Drive
		json.Unmarshal(body, &d)
		if d.Root && len(v.drives) > 0 {
			return faultf("A root block device already exists!")
		}
		v.drives = append(v.drives, d.ID)
	case "/boot-source":
		var b BootSource
		json.Unmarshal(body, &b)
		if len(b.Args) > 2048 {
			return faultf("The kernel command line is too long.")
		}
	case "/network-interfaces/{iface_id}":
		var n Network
		json.Unmarshal(body, &n)
		if err := v.openTap(n.Tap); err != nil && n.Tap != noTap {
			return faultf("Open tap device failed: %v", err)
		}
	case "/mmds/config":
		var c MMDSConfig
		json.Unmarshal(body, &c)
		for _, n := range c.Networks {
			if v.config["/network-interfaces/"+n] == nil {
				return faultf("The list of network interface IDs provided contains at least one ID that does not correspond to any existing network interface.")
			}
		}
	}
	return nil
}

// noTap is the name of a tap device that the stand-in takes for there: not every test is root.
const noTap = "notap0"

// openTap takes a tap device, as the jailed user may.
func (v *vmm) openTap(name string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if b, err := os.ReadFile("/sys/class/net/" + name + "/owner"); err == nil && v.uid >= 0 && strings.TrimSpace(string(b)) != strconv.Itoa(v.uid) {
		return fmt.Errorf("it is user %s's, and not %d's", b, v.uid)
	}
	if _, err := net.InterfaceByName(name); err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, req) // the file stays open, as long as the process
}

// paths checks that the files that a body names are there, and that this user may use them.
func (v *vmm) paths(body []byte) error {
	var p struct {
		Kernel   string `json:"kernel_image_path"`
		Initrd   string `json:"initrd_path"`
		Disk     string `json:"path_on_host"`
		ReadOnly bool   `json:"is_read_only"`
		Log      string `json:"log_path"`
		Metrics  string `json:"metrics_path"`
		Serial   string `json:"serial_out_path"`
	}
	json.Unmarshal(body, &p)
	for path, write := range map[string]bool{p.Kernel: false, p.Initrd: false, p.Log: true, p.Metrics: true, p.Serial: true, p.Disk: !p.ReadOnly} {
		if path == "" {
			continue
		}
		if err := v.mayOpen(path, write); err != nil {
			return err
		}
	}
	return nil
}

// mayOpen is an error where the jailed user could not open a file.
func (v *vmm) mayOpen(path string, write bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return faultf("%v", err)
	}
	if v.uid < 0 {
		return nil
	}
	need := os.FileMode(0o4)
	if write {
		need = 0o6
	}
	perm := info.Mode().Perm()
	if int(info.Sys().(*syscall.Stat_t).Uid) == v.uid {
		perm >>= 6
	}
	if perm&need != need || filepath.IsAbs(path) {
		return faultf("%s: Permission denied for user %d (os error 13)", path, v.uid)
	}
	return nil
}

func (v *vmm) action(body []byte) error {
	var a struct {
		Type string `json:"action_type"`
	}
	json.Unmarshal(body, &a)
	switch {
	case a.Type != "InstanceStart" && v.state == NotStarted:
		return faultf("The requested operation is not supported before starting the microVM.")
	case a.Type == "InstanceStart" && v.state != NotStarted:
		return faultf("The requested operation is not supported after starting the microVM.")
	case a.Type == "FlushMetrics":
		var m struct {
			Path string `json:"metrics_path"`
		}
		json.Unmarshal(v.config["/metrics"], &m)
		f, err := os.OpenFile(m.Path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = fmt.Fprintf(f, "{\"utc_timestamp_ms\":%d,\"vcpu\":{\"exit_io_in\":1}}\n", time.Now().UnixMilli())
		return err
	case a.Type == "SendCtrlAltDel":
		os.Exit(0)
	}
	if v.config["/boot-source"] == nil {
		return faultf("Cannot start microvm without kernel configuration.")
	}
	var b BootSource
	json.Unmarshal(v.config["/boot-source"], &b)
	if strings.HasSuffix(b.Args, " tgr.probe") {
		fmt.Println(os.Getenv(standinProbe))
		time.AfterFunc(10*time.Millisecond, func() { os.Exit(0) }) // a guest that resets its machine, after the reply
		return nil
	}
	var s Vsock
	json.Unmarshal(v.config["/vsock"], &s)
	return v.run(s.Path)
}

// run starts what is in the place of a guest: the agent, behind the socket of the vsock device.
func (v *vmm) run(vsock string) error {
	v.vsock, v.guest = vsock, filepath.Join(v.private, "agent.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: v.guest, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	inherited, err := l.File()
	if err != nil {
		return err
	}
	port, err := net.Listen("unix", vsock)
	if err != nil {
		return faultf("Cannot create the vsock device: %v", err)
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the agent dies with the thread that started it
		cmd := exec.Command(os.Getenv(standinAgent), "-fd", "3")
		cmd.Dir, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = "/", []*os.File{inherited}, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		err := cmd.Start()
		v.agent = cmd.Process
		started <- err
		if err == nil {
			cmd.Wait()
			fmt.Println("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009")
			os.RemoveAll(v.private)
			os.Exit(0)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	inherited.Close()
	l.Close()
	v.state = Running
	go v.accept(port)
	return nil
}

// accept serves the socket of the vsock device.
func (v *vmm) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go v.bridge(conn)
	}
}

func (v *vmm) bridge(conn net.Conn) {
	defer conn.Close()
	var port int
	if _, err := fmt.Fscanf(conn, "CONNECT %d\n", &port); err != nil || port != agentPort {
		return // nobody listens there: the stream ends
	}
	agent, err := net.Dial("unix", v.guest)
	if err != nil {
		return
	}
	defer agent.Close()
	fmt.Fprint(conn, "OK 1073741824\n")
	done := make(chan struct{}, 2)
	go func() { io.Copy(agent, conn); done <- struct{}{} }()
	go func() { io.Copy(conn, agent); done <- struct{}{} }()
	<-done
}

func (v *vmm) setState(body []byte) error {
	var s struct {
		State string `json:"state"`
	}
	json.Unmarshal(body, &s)
	sig := syscall.SIGSTOP
	v.state = StatePaused
	if s.State == "Resumed" {
		v.state, sig = Running, syscall.SIGCONT
	}
	return syscall.Kill(-v.agent.Pid, sig)
}

// saved is the stand-in's file of a machine's state.
type saved struct {
	Version, Vsock string
	Config         map[string]json.RawMessage
}

const memoryMark = "memory of a stand-in"

func (v *vmm) create(body []byte) error {
	var f SnapshotFiles
	json.Unmarshal(body, &f)
	if v.state != StatePaused {
		return faultf("Cannot save the microVM unless it is paused.")
	}
	var m Machine
	json.Unmarshal(v.config["/machine-config"], &m)
	b, err := json.Marshal(saved{v.version, v.vsock, v.config})
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(f.State, b, 0o600), os.WriteFile(f.Memory, []byte(memoryMark), 0o600), os.Truncate(f.Memory, m.MemoryMiB<<20))
}

func (v *vmm) load(body []byte) error {
	var l struct {
		SnapshotLoad
		MemFile string `json:"mem_file_path"`
	}
	json.Unmarshal(body, &l)
	if len(v.config) > len(v.once) || v.state != NotStarted {
		return faultf("Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	}
	if (l.MemFile == "") == (l.Memory.Path == "") {
		return faultf("exactly one of mem_backend and mem_file_path is wanted")
	}
	if err := errors.Join(v.mayOpen(l.State, false), v.mayOpen(l.Memory.Path, false)); err != nil {
		return err
	}
	b, err := os.ReadFile(l.State)
	if err != nil {
		return err
	}
	var s saved
	if err := json.Unmarshal(b, &s); err != nil || s.Version != v.version {
		return faultf("Load snapshot error: Failed to restore from snapshot: %v, version %q", err, s.Version)
	}
	if mark, err := readStart(l.Memory.Path, len(memoryMark)); err != nil || mark != memoryMark {
		return faultf("Load snapshot error: the memory file is %q, %v", mark, err)
	}
	for path, body := range s.Config {
		if strings.HasPrefix(path, "/network-interfaces/") {
			if err := v.limits("/network-interfaces/{iface_id}", body); err != nil {
				return err
			}
		}
		if err := v.paths(body); err != nil && path != "/boot-source" && !v.once[path] {
			return err // of a disk, say
		}
		if !v.once[path] {
			v.config[path] = body
		}
	}
	if l.Vsock != nil {
		s.Vsock = l.Vsock.Path
	}
	if err := v.run(s.Vsock); err != nil || l.Resume {
		return err
	}
	v.state = StatePaused
	return syscall.Kill(-v.agent.Pid, syscall.SIGSTOP)
}

func readStart(path string, n int) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, n)
	_, err = io.ReadFull(f, b)
	return string(b), err
}

func (v *vmm) setMMDS(method string, body []byte) error {
	var data map[string]any
	if err := json.Unmarshal(body, &data); err != nil {
		return faultf("%v", err)
	}
	if method == http.MethodPut {
		v.mmds = data
		return nil
	}
	if v.mmds == nil {
		return faultf("The MMDS data store is not initialized.")
	}
	merge(v.mmds, data)
	return nil
}

// merge is RFC 7396.
func merge(into, patch map[string]any) {
	for k, p := range patch {
		below, ok := p.(map[string]any)
		old, isMap := into[k].(map[string]any)
		switch {
		case p == nil:
			delete(into, k)
		case ok && isMap:
			merge(old, below)
		default:
			into[k] = p
		}
	}
}

// programs returns the stand-ins of both programs, of that version; or it skips.
func programs(t testing.TB, version string) (firecracker, jailer string) {
	t.Helper()
	spec, err := filepath.Abs("../../../shared/firecracker/firecracker-v1.16.1.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(spec); err != nil {
		t.Skip("SKIPPED: Firecracker's description of its API is not here, by which the stand-in judges: ", err)
	}
	dir, agent := t.TempDir(), filepath.Join(builds, "tgr-guest")
	if _, err := os.Stat(agent); err != nil {
		build := exec.Command("go", "build", "-o", agent, "github.com/terraphim/tgr/cmd/tgr-guest")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build tgr-guest: %v\n%s", err, out)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"firecracker", "jailer"} { // scripts, because the provider passes no environment on
		script := fmt.Sprintf("#!/bin/sh\nexport %s=%s %s='%s' %s='%s' %s=%s %s='%s'\nexec '%s' \"$@\"\n", standinRole, name,
			standinSpec, spec, standinAgent, agent, standinVersion, version, standinProbe, probeMessage, self)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "firecracker"), filepath.Join(dir, "jailer")
}
