package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

const (
	maxBody  = 51200   // bytes that a process accepts by default (--http-api-max-payload-size)
	maxReply = 1 << 20 // bytes of a reply that are read
)

// Client speaks to one Firecracker process through its API socket. A process does one call at a time; the methods are
// safe for concurrent use. Each returns an *APIError when the process refused, any other error when it was not reached.
type Client struct{ http *http.Client }

// NewClient returns a client that reaches its process by dial. Close frees its connections.
func NewClient(dial func(ctx context.Context) (net.Conn, error)) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext:  func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConns: 1, MaxConnsPerHost: 1, // the process has few, and answers one after the other anyway
		DisableCompression: true,
	}}}
}

// Close frees the client's connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// APIError is a call that the process refused.
type APIError struct {
	Call    string // "PUT /drives/root"
	Status  int    // of HTTP
	Message string // the process's fault_message
}

// Error names the call and what the process said.
func (e *APIError) Error() string {
	return fmt.Sprintf("firecracker: %s: status %d: %s", e.Call, e.Status, e.Message)
}

// call sends a body, unless it is nil, and reads the reply into out, unless that is nil.
func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	name := method + " " + path
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("firecracker: %s: %w", name, err)
		}
		if len(b) > maxBody {
			return &APIError{name, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has %d bytes, more than %d", len(b), maxBody)}
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, payload)
	if err != nil {
		return fmt.Errorf("firecracker: %s: %w", name, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("firecracker: %s: %w", name, err)
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return fmt.Errorf("firecracker: %s: %w", name, err)
	}
	if resp.StatusCode/100 != 2 {
		return &APIError{name, resp.StatusCode, faultOf(reply)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(reply, out); err != nil {
		return fmt.Errorf("firecracker: %s: its reply is not what the API describes: %w", name, err)
	}
	return nil
}

// faultOf is the message of an error's body, or the body.
func faultOf(reply []byte) string {
	var fault struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(reply, &fault) == nil && fault.Message != "" {
		return fault.Message
	}
	const most = 300
	return strings.ToValidUTF8(string(reply[:min(len(reply), most)]), "?")
}

func (c *Client) put(ctx context.Context, path string, body any) error {
	return c.call(ctx, http.MethodPut, path, body, nil)
}

func (c *Client) patch(ctx context.Context, path string, body any) error {
	return c.call(ctx, http.MethodPatch, path, body, nil)
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var out T
	err := c.call(ctx, http.MethodGet, path, nil, &out)
	return out, err
}

// deviceID is what the process accepts in a path: no hyphen.
var deviceID = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9_]{1,64}$`)
})

// device is the path of a device, if its ID can be one.
func device(kind, id string) (string, error) {
	if !deviceID().MatchString(id) {
		return "", fmt.Errorf("firecracker: %s %q: an ID has letters, digits and _, 64 at most", kind, id)
	}
	return "/" + kind + "/" + id, nil
}

// Info describes the process.
func (c *Client) Info(ctx context.Context) (InstanceInfo, error) {
	return get[InstanceInfo](ctx, c, "/")
}

// Version is the process's version: 1.16.1.
func (c *Client) Version(ctx context.Context) (string, error) {
	v, err := get[struct {
		Version string `json:"firecracker_version"`
	}](ctx, c, "/version")
	return v.Version, err
}

// Config is all that was configured, as the process tells it.
func (c *Client) Config(ctx context.Context) (map[string]json.RawMessage, error) {
	return get[map[string]json.RawMessage](ctx, c, "/vm/config")
}

// Machine returns the size of the machine.
func (c *Client) Machine(ctx context.Context) (Machine, error) {
	return get[Machine](ctx, c, "/machine-config")
}

// PutMachine sets the size of the machine, before the boot.
func (c *Client) PutMachine(ctx context.Context, m Machine) error {
	return c.put(ctx, "/machine-config", m)
}

// PatchMachine changes the size of the machine, before the boot.
func (c *Client) PatchMachine(ctx context.Context, m MachineUpdate) error {
	return c.patch(ctx, "/machine-config", m)
}

// PutCPU sets a custom CPU template, before the boot.
func (c *Client) PutCPU(ctx context.Context, cpu CPUConfig) error {
	return c.put(ctx, "/cpu-config", cpu)
}

// PutBoot sets what is booted.
func (c *Client) PutBoot(ctx context.Context, b BootSource) error {
	if len(b.Args) > 2048 {
		return fmt.Errorf("firecracker: the kernel's command line has %d bytes, more than 2048", len(b.Args))
	}
	return c.put(ctx, "/boot-source", b)
}

// PutDrive adds a disk, before the boot.
func (c *Client) PutDrive(ctx context.Context, d Drive) error {
	path, err := device("drives", d.ID)
	if err != nil {
		return err
	}
	return c.put(ctx, path, d)
}

// PatchDrive changes a disk of a machine that runs.
func (c *Client) PatchDrive(ctx context.Context, d DriveUpdate) error {
	path, err := device("drives", d.ID)
	if err != nil {
		return err
	}
	return c.patch(ctx, path, d)
}

// PutPmem adds a file as persistent memory, before the boot.
func (c *Client) PutPmem(ctx context.Context, p Pmem) error {
	path, err := device("pmem", p.ID)
	if err != nil {
		return err
	}
	return c.put(ctx, path, p)
}

// PatchPmem changes the limits of persistent memory of a machine that runs.
func (c *Client) PatchPmem(ctx context.Context, p PmemUpdate) error {
	path, err := device("pmem", p.ID)
	if err != nil {
		return err
	}
	return c.patch(ctx, path, p)
}

// PutNetwork adds a network device, before the boot.
func (c *Client) PutNetwork(ctx context.Context, n Network) error {
	path, err := device("network-interfaces", n.ID)
	if err != nil {
		return err
	}
	return c.put(ctx, path, n)
}

// PatchNetwork changes the limits of a network device of a machine that runs.
func (c *Client) PatchNetwork(ctx context.Context, n NetworkUpdate) error {
	path, err := device("network-interfaces", n.ID)
	if err != nil {
		return err
	}
	return c.patch(ctx, path, n)
}

// PutVsock adds the socket device, before the boot.
func (c *Client) PutVsock(ctx context.Context, v Vsock) error { return c.put(ctx, "/vsock", v) }

// PutMMDSConfig makes the metadata service reachable, before the boot.
func (c *Client) PutMMDSConfig(ctx context.Context, m MMDSConfig) error {
	return c.put(ctx, "/mmds/config", m)
}

// PutMMDS replaces what the metadata service tells.
func (c *Client) PutMMDS(ctx context.Context, data any) error { return c.put(ctx, "/mmds", data) }

// PatchMMDS merges into what the metadata service tells, by RFC 7396.
func (c *Client) PatchMMDS(ctx context.Context, data any) error { return c.patch(ctx, "/mmds", data) }

// MMDS is what the metadata service tells.
func (c *Client) MMDS(ctx context.Context) (json.RawMessage, error) {
	return get[json.RawMessage](ctx, c, "/mmds")
}

// PutBalloon adds the balloon, before the boot.
func (c *Client) PutBalloon(ctx context.Context, b Balloon) error { return c.put(ctx, "/balloon", b) }

// PatchBalloon sets how much memory the balloon takes.
func (c *Client) PatchBalloon(ctx context.Context, mib int64) error {
	return c.patch(ctx, "/balloon", map[string]int64{"amount_mib": mib})
}

// Balloon returns what the balloon was configured as.
func (c *Client) Balloon(ctx context.Context) (Balloon, error) {
	return get[Balloon](ctx, c, "/balloon")
}

// BalloonStats returns what the guest said of its memory last.
func (c *Client) BalloonStats(ctx context.Context) (BalloonStats, error) {
	return get[BalloonStats](ctx, c, "/balloon/statistics")
}

// PatchBalloonStats sets how often the guest tells of its memory, in seconds. It cannot be switched on or off.
func (c *Client) PatchBalloonStats(ctx context.Context, every int) error {
	return c.patch(ctx, "/balloon/statistics", map[string]int{"stats_polling_interval_s": every})
}

// StartHinting has the guest hint at free pages.
func (c *Client) StartHinting(ctx context.Context, acknowledge bool) error {
	return c.patch(ctx, "/balloon/hinting/start", map[string]bool{"acknowledge_on_stop": acknowledge})
}

// Hinting says how far the guest is.
func (c *Client) Hinting(ctx context.Context) (HintingStatus, error) {
	return get[HintingStatus](ctx, c, "/balloon/hinting/status")
}

// StopHinting ends what StartHinting began.
func (c *Client) StopHinting(ctx context.Context) error {
	return c.patch(ctx, "/balloon/hinting/stop", nil)
}

// PutEntropy adds the entropy device, before the boot; nil is no limit.
func (c *Client) PutEntropy(ctx context.Context, l *Limiter) error {
	return c.put(ctx, "/entropy", struct {
		Limiter *Limiter `json:"rate_limiter,omitempty"`
	}{l})
}

// PutSerial sends the serial console to a file or pipe that exists, rather than to standard output.
func (c *Client) PutSerial(ctx context.Context, path string) error {
	return c.put(ctx, "/serial", map[string]string{"serial_out_path": path})
}

// PutHotplug adds memory that may be plugged, before the boot.
func (c *Client) PutHotplug(ctx context.Context, h Hotplug) error {
	return c.put(ctx, "/hotplug/memory", h)
}

// PatchHotplug sets how much of it is plugged, in MiB.
func (c *Client) PatchHotplug(ctx context.Context, mib int64) error {
	return c.patch(ctx, "/hotplug/memory", map[string]int64{"requested_size_mib": mib})
}

// Hotplug says how much is plugged.
func (c *Client) Hotplug(ctx context.Context) (HotplugStatus, error) {
	return get[HotplugStatus](ctx, c, "/hotplug/memory")
}

// PutLogger sets where the process writes its log; once, before the boot or the load.
func (c *Client) PutLogger(ctx context.Context, l Logger) error { return c.put(ctx, "/logger", l) }

// PutMetrics sets the file or pipe that the process writes its metrics to; once, before the boot or the load.
func (c *Client) PutMetrics(ctx context.Context, path string) error {
	return c.put(ctx, "/metrics", map[string]string{"metrics_path": path})
}

func (c *Client) action(ctx context.Context, name string) error {
	return c.put(ctx, "/actions", map[string]string{"action_type": name})
}

// Boot starts the machine.
func (c *Client) Boot(ctx context.Context) error { return c.action(ctx, "InstanceStart") }

// CtrlAltDel asks the guest to shut down, on x86.
func (c *Client) CtrlAltDel(ctx context.Context) error { return c.action(ctx, "SendCtrlAltDel") }

// FlushMetrics writes the metrics now, rather than once a minute.
func (c *Client) FlushMetrics(ctx context.Context) error { return c.action(ctx, "FlushMetrics") }

// Pause stops the processors. It may be called again.
func (c *Client) Pause(ctx context.Context) error {
	return c.patch(ctx, "/vm", map[string]string{"state": "Paused"})
}

// Resume lets the processors go on. It may be called again.
func (c *Client) Resume(ctx context.Context) error {
	return c.patch(ctx, "/vm", map[string]string{"state": "Resumed"})
}

// CreateSnapshot writes a machine that is paused to files.
func (c *Client) CreateSnapshot(ctx context.Context, f SnapshotFiles) error {
	return c.put(ctx, "/snapshot/create", f)
}

// LoadSnapshot makes the process, which has no machine yet, a snapshot's. If it fails, the process ends.
func (c *Client) LoadSnapshot(ctx context.Context, l SnapshotLoad) error {
	return c.put(ctx, "/snapshot/load", l)
}

// MinVersion is the first version that is supported: before it, machines that were restored lost their socket device,
// and their clock jumped.
const MinVersion = "1.16.1"

// supported is an error for a version before MinVersion, or one that cannot be read.
func supported(version string) error {
	got, ok := parseVersion(version)
	least, _ := parseVersion(MinVersion)
	switch {
	case !ok:
		return fmt.Errorf("firecracker says that its version is %q, which is none", version)
	case less(got, least):
		return fmt.Errorf("firecracker %s is too old: at least %s is needed", version, MinVersion)
	}
	return nil
}

var versionRE = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:[-+].*)?$`)
})

func parseVersion(s string) (v [3]int, ok bool) {
	m := versionRE().FindStringSubmatch(s)
	if m == nil {
		return v, false
	}
	for i := range v {
		v[i], _ = strconv.Atoi(m[i+1]) // digits, and few
	}
	return v, true
}

func less(a, b [3]int) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}
