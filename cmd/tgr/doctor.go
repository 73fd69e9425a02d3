package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/firecracker"
	"github.com/terraphim/tgr/vm/qemu"
)

// finding is one line of the doctor's report.
type finding struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Required bool   `json:"required"` // without it the default isolation does not work
	Found    string `json:"found"`
	Fix      string `json:"fix,omitempty"` // the command that mends it
}

// diagnosis is the doctor's report.
type diagnosis struct {
	Findings  []finding `json:"findings"`
	Isolation string    `json:"isolation"` // that jobs get by default; "" if none works
	Why       string    `json:"why"`
}

func newDoctorCmd() *cobra.Command {
	var asJSON bool
	var probe string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what this host has, what it lacks, and the command that mends it",
		Long: "Say what this host has, what it lacks, and the command that mends it.\n\n" +
			"A guest is really booted, with KVM and with what jobs would get. Exit status 0 says that the default isolation works,\n" +
			"or with --probe that this one does.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			if probe != "" && probe != "firecracker" && probe != "qemu" {
				return usagef("--probe %s: expected firecracker or qemu", probe)
			}
			d := diagnose(cmd.Context(), c, imageStore(cmd))
			if probe != "" && !strings.HasPrefix(d.Isolation, probe) {
				d.Isolation, d.Why = "", "machines are not of "+probe+" here"
				for _, f := range d.Findings {
					if strings.EqualFold(f.Name, probe) && !f.OK {
						d.Why += ": " + f.Found
					}
				}
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), d)
			} else {
				err = d.print(cmd.OutOrStdout())
			}
			if err == nil && d.Isolation == "" {
				err = exitError{code: exitFailed}
			}
			return err
		},
	}
	configFlags(cmd, "image", "data-dir")
	imageFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&probe, "probe", "", "fail unless machines would be of this isolation: firecracker or qemu")
	return cmd
}

func diagnose(ctx context.Context, c *config, images *image.Store) diagnosis {
	var d diagnosis
	for _, t := range doctorTools() {
		d.Findings = append(d.Findings, t.check(ctx))
	}
	d.Findings = append(d.Findings, checkKernel(), checkMemory(), checkDisk(c.get("data-dir")), checkNetwork())
	if url := c.get("database-url"); url != "" {
		d.Findings = append(d.Findings, checkDatabase(ctx, url))
	}
	d.checkMachines(ctx, images, c.get("image"))
	return d
}

// tool is a program that is looked for.
type tool struct {
	name, version string // the program, and its flag that prints one
	pkg           string // Debian's, that has it
	required      bool
	why           string
}

func doctorTools() []tool {
	return []tool{
		{"qemu-system-x86_64", "--version", "qemu-system-x86", true, "runs the machines"},
		{"mkfs.ext4", "-V", "e2fsprogs", true, "makes their disks"},
		{"mmdebstrap", "--version", "mmdebstrap", false, "builds images"},
		{"git", "--version", "git", true, "fetches commits"},
	}
}

func (t tool) check(ctx context.Context) finding {
	f := finding{Name: t.name, Required: t.required, Fix: aptInstall(t.pkg)}
	path, err := lookTool(t.name)
	if err != nil {
		f.Found = "not found; it " + t.why
		return f
	}
	out, err := exec.CommandContext(ctx, path, t.version).CombinedOutput()
	if err != nil {
		f.Found = fmt.Sprintf("%s %s: %v", path, t.version, err)
		return f
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return finding{Name: t.name, OK: true, Required: t.required, Found: printable(line)}
}

// lookTool looks in PATH, and where Debian keeps what is for administrators.
func lookTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	return path, err
}

func aptInstall(pkg string) string {
	if os.Geteuid() == 0 {
		return "apt-get install --no-install-recommends " + pkg
	}
	return "sudo apt-get install --no-install-recommends " + pkg
}

func checkKernel() finding {
	path, release, err := image.FindKernel()
	if err != nil {
		return finding{Name: "guest kernel", Found: err.Error(), Fix: aptInstall("linux-image-cloud-amd64")}
	}
	return finding{Name: "guest kernel", OK: true, Found: release + " (" + path + ")"}
}

const (
	leastMemory = 1 << 30 // bytes available: one machine of the default size, which uses less
	leastDisk   = 4 << 30 // bytes free: an image while it is built, and a few overlays
)

func checkMemory() finding {
	f := finding{Name: "memory", Required: true}
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		f.Found = err.Error()
		return f
	}
	var kib int64
	for line := range strings.Lines(string(b)) {
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil {
			break
		}
	}
	f.OK, f.Found = kib<<10 >= leastMemory, mib(kib<<10)+" available"
	if !f.OK {
		f.Fix = "a machine takes up to 1 GiB: free some, or lower TGR_VM_MEMORY"
	}
	return f
}

func checkDisk(dir string) finding {
	f := finding{Name: "disk", Required: true}
	for ; ; dir = filepath.Dir(dir) { // the folder itself may not exist yet
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		f.Found = dir + ": " + err.Error()
		return f
	}
	free := int64(st.Bavail) * st.Bsize
	f.OK, f.Found = free >= leastDisk, mib(free)+" free below "+dir
	if !f.OK {
		f.Fix = "images and machines' disks take a few GiB: free some, or set TGR_DATA_DIR"
	}
	return f
}

// checkDatabase connects to a database that is not a file.
func checkDatabase(ctx context.Context, url string) finding {
	found, err := store.Probe(ctx, url)
	if err != nil {
		return finding{Name: "database", Required: true, Found: printable(err.Error())}
	}
	return finding{Name: "database", OK: true, Required: true, Found: found}
}

// checkMachines looks at the image, at KVM, and boots a guest.
func (d *diagnosis) checkMachines(ctx context.Context, images *image.Store, name string) {
	im, err := images.Open(ctx, name)
	if err != nil {
		fix := "tgr image build"
		if !errors.Is(err, image.ErrNotBuilt) {
			fix = "tgr image rm " + name + " && tgr image build " + name
		}
		d.Findings = append(d.Findings, finding{Name: "image", Required: true, Found: err.Error(), Fix: fix})
		d.Why = "there is no image to boot"
		return
	}
	defer im.Close()
	d.Findings = append(d.Findings, finding{Name: "image", OK: true, Required: true,
		Found: fmt.Sprintf("%s: kernel %s, built %s", im.Name, im.Release, im.Manifest.Built.Format(time.DateOnly))})
	p, err := qemu.New(qemu.Config{
		Image:   qemu.Image{Kernel: im.Kernel, Initrd: im.Initrd, Root: im.Root, Overlay: im.CloneOverlay},
		Journal: vm.Journal{Dir: os.TempDir()}, // a probe is not journalled: it ends with this process
	})
	if err != nil {
		d.Why = err.Error()
		return
	}
	v, err := p.Accelerator(ctx)
	if err != nil {
		d.Why = err.Error()
		return
	}
	d.Findings = append(d.Findings, kvmFinding(v))
	took, err := p.Probe(ctx)
	if err != nil {
		d.Findings = append(d.Findings, finding{Name: "boot", Required: true, Found: err.Error(), Fix: "tgr image verify"})
		d.Why = "a guest does not boot"
		return
	}
	d.Findings = append(d.Findings, finding{Name: "boot", OK: true, Required: true, Found: fmt.Sprintf("a guest booted and powered off in %v", took.Round(time.Millisecond))})
	d.Isolation, d.Why = "qemu (tcg)", "KVM does not boot a guest here, so machines are emulated: the same semantics, and slower code"
	if v.KVM {
		d.Isolation, d.Why = "qemu (kvm)", "KVM booted a guest"
	}
	fc := checkFirecracker(ctx, im)
	d.Findings = append(d.Findings, fc)
	if fc.OK {
		d.Isolation, d.Why = "firecracker", fc.Found
	}
	for _, f := range d.Findings {
		if f.Required && !f.OK {
			d.Isolation, d.Why = "", f.Name+": "+f.Found
			return
		}
	}
}

// checkFirecracker boots a guest by Firecracker.
func checkFirecracker(ctx context.Context, im *image.Image) finding {
	f := finding{Name: "Firecracker", Fix: "put the programs firecracker and jailer of release " + firecracker.MinVersion + " or later into PATH, on a host where KVM boots a guest"}
	dir, err := os.MkdirTemp("", "tgr-probe-")
	if err != nil {
		f.Found = err.Error()
		return f
	}
	defer os.RemoveAll(dir)
	p, err := firecracker.New(firecrackerConfig(im, vm.Journal{Dir: filepath.Join(dir, "machines"), Volatile: true}, slog.New(slog.DiscardHandler), false))
	if err != nil {
		f.Found = err.Error()
		return f
	}
	v, err := p.Probe(ctx)
	if err != nil {
		f.Found = err.Error()
		return f
	}
	f.OK, f.Found = v.OK, v.Reason
	return f
}

func kvmFinding(v qemu.Verdict) finding {
	f := finding{Name: "KVM", OK: v.KVM, Found: v.Reason}
	if !v.KVM {
		f.Fix = "use a host with hardware virtualisation, and let this user open /dev/kvm (group kvm)"
	}
	return f
}

func (d diagnosis) print(out io.Writer) error {
	var b strings.Builder
	for _, f := range d.Findings {
		mark := "✓"
		switch {
		case !f.OK && f.Required:
			mark = "✗"
		case !f.OK:
			mark = "–"
		}
		fmt.Fprintf(&b, "%s %-18s  %s\n", mark, f.Name, f.Found)
		if !f.OK && f.Fix != "" {
			fmt.Fprintf(&b, "  %-18s  → %s\n", "", f.Fix)
		}
	}
	if d.Isolation == "" {
		fmt.Fprintf(&b, "\nNot yet: %s.\n", d.Why)
	} else {
		fmt.Fprintf(&b, "\nJobs run in %s: %s.\n", d.Isolation, d.Why)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
