package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// PortName is the name of the virtio-serial port that the agent is spoken to through.
const PortName = "tgr.agent"

// ProbeMessage is what a guest writes to its console when it was booted with tgr.probe, before it powers off.
const ProbeMessage = "tgr: probe ok"

const (
	bootModules = "/lib/modules" // holds the modules, and the file "order"
	deviceWait  = time.Minute
)

// Boot does the duties of PID 1 in a virtual machine's initramfs: it loads the kernel modules, puts the writable
// disk over the read-only root as an overlay, makes that the root, mounts what programs expect, and opens the way
// to the host. The disks are found by the serial numbers "root" and "overlay".
//
// The kernel's command line may hold tgr.probe (write ProbeMessage and power off),
// tgr.net=ADDRESS/BITS,GATEWAY,DNS (configure eth0), tgr.disks=ROOT,OVERLAY (names of the disks, where a machine
// cannot give them serial numbers) and tgr.vsock=PORT (listen on that vsock port instead of the virtio-serial one).
// When Boot fails as PID 1 it writes the reason to log, which is the console, and powers off: it does not return. A
// process that is not PID 1 gets the error.
func Boot(log io.Writer) (link Link, err error) {
	if os.Getpid() != 1 {
		return Link{}, errors.New("boot: not PID 1")
	}
	if link, err = boot(log); err != nil {
		fmt.Fprintf(log, "tgr-guest: boot failed: %v\n", err)
		PowerOff()
	}
	return link, err
}

// Link is the way to the host: one of the two. The caller closes it.
type Link struct {
	Port     *os.File     // the virtio-serial port
	Listener net.Listener // of vsock
	Scratch  string       // see Hello
	engine   *activator   // nil: there is none
}

func boot(log io.Writer) (Link, error) {
	for _, m := range []mount{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	} {
		if err := m.do(); err != nil {
			return Link{}, err
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return Link{}, err
	}
	opts := parseCmdline(string(cmdline))
	if opts.probe {
		fmt.Fprintln(log, ProbeMessage)
		PowerOff()
	}
	if err := loadModules(bootModules, opts.vsock != 0); err != nil {
		return Link{}, err
	}
	if err := mountRoot(opts.disks); err != nil {
		return Link{}, err
	}
	if err := mountRest(); err != nil {
		return Link{}, err
	}
	if err := configure(opts); err != nil {
		return Link{}, err
	}
	scratch, err := mountScratch()
	if err != nil {
		return Link{}, err
	}
	link := Link{Scratch: scratch}
	if link.engine, err = engineActivator(); err != nil {
		return Link{}, err
	}
	if opts.vsock == 0 {
		link.Port, err = openPort("/sys/class/virtio-ports", "/dev", deviceWait)
		return link, err
	}
	l, err := listenVsock(opts.vsock)
	link.Listener = l
	return link, err
}

// mountScratch makes Hello's folder, which belongs to whom the home belongs that jobs have in our images. A machine without
// that home has none. What fills it fills a quarter of the memory, and no more.
func mountScratch() (string, error) {
	const home, dir = "/home/runner", "/run/runner"
	var st unix.Stat_t
	if err := unix.Stat(home, &st); err != nil {
		return "", nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	options := fmt.Sprintf("mode=0755,size=25%%,uid=%d,gid=%d", st.Uid, st.Gid)
	return dir, mount{"tmpfs", dir, "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, options}.do()
}

// PowerOff stops the machine at once. It returns only if the caller may not do that.
func PowerOff() {
	unix.Sync()
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if cmdline, err := os.ReadFile("/proc/cmdline"); err == nil && parseCmdline(string(cmdline)).vsock != 0 {
		how = unix.LINUX_REBOOT_CMD_RESTART // Firecracker has no power to switch off, and ends when its guest resets
	}
	if err := unix.Reboot(how); err == nil && os.Getpid() == 1 {
		select {} // the other processors are stopping
	}
}

type bootOptions struct {
	probe bool
	net   string
	disks string
	vsock uint32 // port; 0: none
}

func parseCmdline(s string) bootOptions {
	var o bootOptions
	for _, word := range strings.Fields(s) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "tgr.probe":
			o.probe = true
		case "tgr.net":
			o.net = value
		case "tgr.disks":
			o.disks = value
		case "tgr.vsock":
			port, err := strconv.ParseUint(value, 10, 32)
			if err == nil {
				o.vsock = uint32(port)
			}
		}
	}
	return o
}

// loadModules loads the modules in dir that its file "order" names, in that order; those of Firecracker's devices only
// where they are wanted, because a module costs milliseconds.
func loadModules(dir string, firecracker bool) error {
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		if !firecracker && (strings.Contains(name, "vsock") || strings.Contains(name, "balloon")) {
			continue
		}
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func (m mount) do() error {
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", m.source, m.kind, m.target, err)
	}
	return nil
}

// mountRoot makes the overlay of both disks the root of the file system. Nothing survives the machine, so the
// writable disk has no journal to replay and the overlay does not wait for it (volatile).
func mountRoot(disks string) error {
	root, over, err := findDisks("/sys/block", disks)
	if err != nil {
		return err
	}
	for _, m := range []mount{
		{"/dev/" + root, "/lower", "ext4", unix.MS_RDONLY | unix.MS_NOATIME, ""},
		{"/dev/" + over, "/upper", "ext4", unix.MS_NOATIME, "noinit_itable"},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	// Nobody else waits for this disk: what the kernel does about writers that are too fast for it only costs.
	os.WriteFile("/sys/block/"+over+"/queue/wbt_lat_usec", []byte("0"), 0)
	for _, dir := range []string{"/upper/upper", "/upper/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	const layers = "lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work,redirect_dir=on,xino=on,volatile"
	if err := (mount{"overlay", "/root", "overlay", unix.MS_NOATIME, layers}).do(); err != nil {
		return err
	}
	if err := mountStores(); err != nil {
		return err
	}
	os.RemoveAll("/lib") // the modules are in the kernel: give back the initramfs's memory
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := (mount{dir, "/root" + dir, "", unix.MS_MOVE, ""}).do(); err != nil {
			return err
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := (mount{".", "/", "", unix.MS_MOVE, ""}).do(); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// mountStores puts the writable disk itself where container engines keep images, in an image that has such a folder:
// their own overlays cannot lie on one.
func mountStores() error {
	for _, dir := range []string{"/var/lib/containers", "/var/lib/docker"} {
		if fi, err := os.Lstat("/lower" + dir); err != nil || !fi.IsDir() {
			continue
		}
		store := "/upper/" + filepath.Base(dir)
		if err := os.Mkdir(store, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := (mount{store, "/root" + dir, "", unix.MS_BIND, ""}).do(); err != nil {
			return err
		}
	}
	return nil
}

// mountRest mounts what programs expect of a running system. /tmp stays on the writable disk: a build that fills
// it must not take the machine's memory.
func mountRest() error {
	for _, dir := range []string{"/dev/pts", "/dev/shm"} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV
	for _, m := range []mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777"},
		{"tmpfs", "/run", "tmpfs", safe, "mode=0755"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", safe | unix.MS_NOEXEC, ""},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return os.Mkdir("/run/lock", 0o1777)
}

// configure sets limits, the host name and the network.
func configure(opts bootOptions) error {
	lim := unix.Rlimit{Cur: 65536, Max: 1 << 20}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	if err := makeJobGroup(cgroupMount); err != nil {
		return fmt.Errorf("control group of the job: %w", err)
	}
	name, err := os.ReadFile("/etc/hostname")
	if err != nil {
		name = []byte("tgr")
	}
	if err := unix.Sethostname([]byte(strings.TrimSpace(string(name)))); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := machineFiles().settle(); err != nil {
		return fmt.Errorf("ids: %w", err)
	}
	if err := interfaceUp("lo", netip.Prefix{}); err != nil {
		return err
	}
	if opts.net == "" {
		return nil
	}
	return configureNet(opts.net)
}

// configureNet sets up eth0 as tgr.net=ADDRESS/BITS,GATEWAY,DNS says; IPv4 only.
func configureNet(s string) error {
	prefix, gateway, dns, err := parseNet(s)
	if err != nil {
		return err
	}
	if err := interfaceUp("eth0", prefix); err != nil {
		return err
	}
	if err := defaultRoute(gateway); err != nil {
		return err
	}
	// The link is up a moment after the interface: a program that ran sooner would find no network.
	if _, err := waitFor(deviceWait, "link of eth0", linkUp); err != nil {
		return err
	}
	return os.WriteFile("/etc/resolv.conf", []byte("nameserver "+dns.String()+"\n"), 0o644)
}

func linkUp() string {
	b, _ := os.ReadFile("/sys/class/net/eth0/carrier")
	return strings.TrimRight(string(b), "0\n")
}

func parseNet(s string) (prefix netip.Prefix, gateway, dns netip.Addr, err error) {
	parts := strings.Split(s, ",")
	if len(parts) != 3 {
		return prefix, gateway, dns, fmt.Errorf("tgr.net=%s: want ADDRESS/BITS,GATEWAY,DNS", s)
	}
	prefix, err1 := netip.ParsePrefix(parts[0])
	gateway, err2 := netip.ParseAddr(parts[1])
	dns, err3 := netip.ParseAddr(parts[2])
	if err := errors.Join(err1, err2, err3); err != nil {
		return prefix, gateway, dns, fmt.Errorf("tgr.net=%s: %w", s, err)
	}
	if !prefix.Addr().Is4() || !gateway.Is4() {
		return prefix, gateway, dns, fmt.Errorf("tgr.net=%s: only IPv4 is supported", s)
	}
	return prefix, gateway, dns, nil
}

// findDisks waits for the root and the overlay disk: those of the two names, or else by serial number.
func findDisks(sys, names string) (root, over string, err error) {
	if names == "" {
		if root, err = findDisk(sys, "root", deviceWait); err == nil {
			over, err = findDisk(sys, "overlay", deviceWait)
		}
		return root, over, err
	}
	root, over, ok := strings.Cut(names, ",")
	if !ok || root == "" || over == "" || strings.Contains(names, "/") {
		return "", "", fmt.Errorf("tgr.disks=%s: want ROOT,OVERLAY", names)
	}
	for _, name := range []string{root, over} {
		_, err := waitFor(deviceWait, "disk "+name, func() string {
			if _, err := os.Stat(filepath.Join(sys, name)); err != nil {
				return ""
			}
			return name
		})
		if err != nil {
			return "", "", err
		}
	}
	return root, over, nil
}

// findDisk waits for the block device with that serial number and returns its name under /dev.
func findDisk(sys, serial string, wait time.Duration) (string, error) {
	return waitFor(wait, "disk "+serial, func() string { return findAttr(sys, "serial", serial) })
}

// openPort waits for the agent's port, whose name the host sends after the driver was loaded, and opens it.
func openPort(sys, dev string, wait time.Duration) (*os.File, error) {
	name, err := waitFor(wait, "port "+PortName, func() string { return findAttr(sys, "name", PortName) })
	if err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dev, name), os.O_RDWR|unix.O_NONBLOCK, 0)
}

// findAttr returns the entry of a sysfs folder whose attribute has that value, or "".
func findAttr(sys, attr, value string) string {
	paths, _ := filepath.Glob(filepath.Join(sys, "*", attr))
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err == nil && strings.TrimSpace(string(b)) == value {
			return filepath.Base(filepath.Dir(p))
		}
	}
	return ""
}

func waitFor(wait time.Duration, what string, find func() string) (string, error) {
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		if name := find(); name != "" {
			return name, nil
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("the %s did not appear within %v", what, wait)
		}
	}
}

// interfaceUp gives a network interface its address, if one is given, and starts it.
func interfaceUp(name string, prefix netip.Prefix) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: socket: %w", name, err)
	}
	defer unix.Close(fd)
	if prefix.IsValid() {
		mask := netip.AddrFrom4([4]byte{255, 255, 255, 255})
		masked, err := mask.Prefix(prefix.Bits())
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, a := range []struct {
			request uint
			addr    netip.Addr
		}{{unix.SIOCSIFADDR, prefix.Addr()}, {unix.SIOCSIFNETMASK, masked.Addr()}} {
			if err := setAddr(fd, a.request, name, a.addr); err != nil {
				return err
			}
		}
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("%s: start: %w", name, err)
	}
	return nil
}

func setAddr(fd int, request uint, name string, addr netip.Addr) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := req.SetInet4Addr(addr.AsSlice()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, request, req); err != nil {
		return fmt.Errorf("%s: set address %s: %w", name, addr, err)
	}
	return nil
}

// defaultRoute sends what no interface is nearer to through the gateway, by a netlink message (rtnetlink(7)).
func defaultRoute(gateway netip.Addr) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("default route: socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, routeMessage(gateway), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("default route: the kernel's answer has %d bytes", n)
	}
	if errno := int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); errno != 0 {
		return fmt.Errorf("default route through %s: %w", gateway, unix.Errno(-errno))
	}
	return nil
}

// routeMessage is the RTM_NEWROUTE request for a default route.
func routeMessage(gateway netip.Addr) []byte {
	const attr = unix.SizeofRtAttr + 4
	b := make([]byte, 0, unix.SizeofNlMsghdr+unix.SizeofRtMsg+attr)
	ne := binary.NativeEndian
	b = ne.AppendUint32(b, uint32(cap(b)))
	b = ne.AppendUint16(b, unix.RTM_NEWROUTE)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	b = ne.AppendUint32(b, 1) // sequence number
	b = ne.AppendUint32(b, 0) // port: the kernel fills it in
	b = append(b, unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST)
	b = ne.AppendUint32(b, 0) // flags
	b = ne.AppendUint16(b, attr)
	b = ne.AppendUint16(b, unix.RTA_GATEWAY)
	a := gateway.As4()
	return append(b, a[:]...)
}
