package dispatch

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/vm"
)

// Kind is what machine labels ask for. What is zero is as the server's default machine has it.
type Kind struct {
	Image  string
	CPUs   int
	Memory int64 // bytes
	Disk   int64 // bytes of writable disk
}

// Labels maps the labels of runs-on, in lower case, to kinds of machines. Its zero value knows no label.
type Labels map[string]Kind

// validLabel reports whether a label may be one of ours: a letter or digit, and up to 99 of these and of ._/- behind it.
func validLabel(s string) bool {
	for i := range len(s) {
		c := s[i]
		plain := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !plain && (i == 0 || !strings.ContainsRune("._/-", rune(c))) {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 100
}

// HostedLabels are the labels that any server knows: those of GitHub's own Linux machines, and those that self-hosted
// runners of this kind have of themselves. All mean the default machine.
//
// https://docs.github.com/en/actions/how-tos/write-workflows/choose-where-workflows-run/choose-the-runner-for-a-job
func HostedLabels() Labels {
	arch := map[string]string{"amd64": "x64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	l := Labels{}
	for _, name := range []string{"ubuntu-latest", "ubuntu-26.04", "ubuntu-24.04", "ubuntu-22.04", "ubuntu-slim", "self-hosted", "linux", arch} {
		l[name] = Kind{}
	}
	return l
}

// ParseLabels reads kinds of machines as the setting has them, separated by white space:
//
//	large=cpus:4,memory:8192,disk:20480 docker=image:full ubuntu-20.04=
//
// Memory and disk are in MiB. A label with nothing after the = is a name for the default machine.
func ParseLabels(text string) (Labels, error) {
	l := Labels{}
	for _, field := range strings.Fields(text) {
		name, kind, ok := strings.Cut(field, "=")
		if !ok || !validLabel(name) {
			return nil, fmt.Errorf("label %q: expected name=key:value,key:value", field)
		}
		name = strings.ToLower(name)
		if _, twice := l[name]; twice {
			return nil, fmt.Errorf("label %s is there twice", name)
		}
		k, err := parseKind(kind)
		if err != nil {
			return nil, fmt.Errorf("label %s: %w", name, err)
		}
		l[name] = k
	}
	return l, nil
}

func parseKind(text string) (Kind, error) {
	var k Kind
	if text == "" {
		return k, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(part, ":")
		if !ok || value == "" {
			return k, fmt.Errorf("%q: expected key:value", part)
		}
		if key == "image" {
			k.Image = value
			continue
		}
		bounds, known := map[string][2]int64{"cpus": {1, 64}, "memory": {128, 1 << 20}, "disk": {64, 1 << 30}}[key]
		if !known {
			return k, fmt.Errorf("%q is not known: there are cpus, memory, disk and image", key)
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < bounds[0] || n > bounds[1] {
			return k, fmt.Errorf("%s is %q: expected a whole number from %d to %d", key, value, bounds[0], bounds[1])
		}
		switch key {
		case "cpus":
			k.CPUs = int(n)
		case "memory":
			k.Memory = n << 20
		case "disk":
			k.Disk = n << 20
		}
	}
	return k, nil
}

// Kind is the machine that has all of the labels: of sizes the largest. It is an error of the workflow to ask for
// a label that is not known, or for two images at once. No label asks for the default machine.
func (l Labels) Kind(labels []string) (Kind, error) {
	var out Kind
	image := "" // the label that chose it
	for _, label := range labels {
		k, ok := l[strings.ToLower(label)]
		if !ok {
			return Kind{}, tgr.Errorf("job.labels", tgr.Invalid, "runs-on: no machine here has the label %q%s; there are: %s. The setting labels (TGR_LABELS) adds others",
				label, foreign(label), strings.Join(slices.Sorted(maps.Keys(l)), ", "))
		}
		out.CPUs, out.Memory, out.Disk = max(out.CPUs, k.CPUs), max(out.Memory, k.Memory), max(out.Disk, k.Disk)
		switch {
		case k.Image == "":
		case out.Image != "" && out.Image != k.Image:
			return Kind{}, tgr.Errorf("job.labels", tgr.Invalid, "runs-on: the labels %q and %q are of different images, %s and %s",
				image, label, out.Image, k.Image)
		default:
			out.Image, image = k.Image, label
		}
	}
	return out, nil
}

// foreign says of a label of another system's machines that there are none.
func foreign(label string) string {
	for _, system := range []string{"windows", "macos"} {
		if strings.HasPrefix(strings.ToLower(label), system) {
			return ": all run Linux"
		}
	}
	return ""
}

// Fleet gives every job a machine of the kind that its labels ask for. It is safe for concurrent use.
type Fleet struct {
	Labels Labels
	// Open returns the machines of a kind. It is called when the first of them is wanted, and again after it failed.
	Open func(ctx context.Context, k Kind) (Machines, error)
	// Engine is the image of jobs that need a container engine and whose labels choose none; "": the default image.
	Engine string

	mu    sync.Mutex
	kinds map[Kind]*opening
}

type opening struct {
	mu       sync.Mutex
	machines Machines
}

// Acquire implements Machines.
func (f *Fleet) Acquire(ctx context.Context, s Spec) (*Machine, func(), error) {
	m, err := f.wanted(ctx, s)
	if err != nil {
		return nil, func() {}, err
	}
	return m.Acquire(ctx, s)
}

// wanted returns the machines of the kind that a job wants.
func (f *Fleet) wanted(ctx context.Context, s Spec) (Machines, error) {
	kind, err := f.Labels.Kind(s.Labels)
	if err != nil {
		return nil, err
	}
	if s.Engine {
		kind.Image = cmp.Or(kind.Image, f.Engine)
	}
	return f.of(ctx, kind)
}

// Adopt implements Adopter.
func (f *Fleet) Adopt(ctx context.Context, s Spec, id string) (*Machine, func(), error) {
	m, err := f.wanted(ctx, s)
	if err != nil {
		return nil, func() {}, err
	}
	return Adopt(ctx, m, s, id)
}

// Adopt takes over a machine of m, if that is an Adopter.
func Adopt(ctx context.Context, m Machines, s Spec, id string) (*Machine, func(), error) {
	if a, ok := m.(Adopter); ok {
		return a.Adopt(ctx, s, id)
	}
	return nil, func() {}, vm.ErrNotAdoptable
}

// Of returns the machines that have all of the labels.
func (f *Fleet) Of(ctx context.Context, labels []string) (Machines, error) {
	kind, err := f.Labels.Kind(labels)
	if err != nil {
		return nil, err
	}
	return f.of(ctx, kind)
}

// Ready opens the machines of a kind before any job asks for them.
func (f *Fleet) Ready(ctx context.Context, k Kind) error {
	_, err := f.of(ctx, k)
	return err
}

// of returns the machines of a kind; the first caller opens them while others wait.
func (f *Fleet) of(ctx context.Context, k Kind) (Machines, error) {
	f.mu.Lock()
	if f.kinds == nil {
		f.kinds = map[Kind]*opening{}
	}
	o := f.kinds[k]
	if o == nil {
		o = &opening{}
		f.kinds[k] = o
	}
	f.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.machines != nil {
		return o.machines, nil
	}
	m, err := f.Open(ctx, k)
	if err != nil {
		return nil, err
	}
	o.machines = m
	return m, nil
}
