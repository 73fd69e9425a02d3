package firecracker

// The bodies of Firecracker's API, by the names of its description for 1.16.1. What is not sent keeps the process's own
// default: a process refuses a body with a field that it does not know.
//
// https://github.com/firecracker-microvm/firecracker/blob/v1.16.1/src/firecracker/swagger/firecracker.yaml

// InstanceInfo describes a process.
type InstanceInfo struct {
	ID      string `json:"id"`
	State   string `json:"state"` // NotStarted, Running or StatePaused
	Version string `json:"vmm_version"`
	App     string `json:"app_name"`
}

// The states of an InstanceInfo.
const (
	NotStarted  = "Not started"
	Running     = "Running"
	StatePaused = "Paused"
)

// Machine is the size of a machine.
type Machine struct {
	VCPUs      int    `json:"vcpu_count"`   // 1 to 32; with SMT 1 or even
	MemoryMiB  int64  `json:"mem_size_mib"` // at least 1
	SMT        bool   `json:"smt,omitempty"`
	TrackDirty bool   `json:"track_dirty_pages,omitempty"`
	HugePages  string `json:"huge_pages,omitempty"` // None or 2M, for which MemoryMiB is even
}

// MachineUpdate changes a Machine before the boot; what is zero stays.
type MachineUpdate struct {
	VCPUs     int   `json:"vcpu_count,omitempty"`
	MemoryMiB int64 `json:"mem_size_mib,omitempty"`
}

// CPUConfig is a custom template of CPUID leaves and registers, for hosts that are to look alike to snapshots.
type CPUConfig struct {
	Capabilities []string        `json:"kvm_capabilities,omitempty"`
	CPUID        []CPUIDModifier `json:"cpuid_modifiers,omitempty"`
	MSRs         []MSRModifier   `json:"msr_modifiers,omitempty"`
}

// CPUIDModifier changes bits of one leaf of CPUID.
type CPUIDModifier struct {
	Leaf      string             `json:"leaf"`    // 0x1
	Subleaf   string             `json:"subleaf"` // 0x0
	Flags     int32              `json:"flags"`
	Registers []RegisterModifier `json:"modifiers"`
}

// RegisterModifier changes bits of a register.
type RegisterModifier struct {
	Register string `json:"register"` // eax, ebx, ecx or edx
	Bitmap   string `json:"bitmap"`   // 0b with 0, 1 and x for what stays
}

// MSRModifier changes bits of a model specific register.
type MSRModifier struct {
	Addr   string `json:"addr"`
	Bitmap string `json:"bitmap"`
}

// BootSource is what a machine boots. The kernel is an ELF file; the command line has at most 2048 bytes.
type BootSource struct {
	Kernel string `json:"kernel_image_path"`
	Initrd string `json:"initrd_path,omitempty"`
	Args   string `json:"boot_args,omitempty"`
}

// Bucket is a token bucket: Size tokens are given back over Refill.
type Bucket struct {
	Size   int64 `json:"size"`        // bytes, or operations
	Refill int64 `json:"refill_time"` // milliseconds
	Burst  int64 `json:"one_time_burst,omitempty"`
}

// Limiter bounds a device. In a PATCH an empty one takes the bounds away.
type Limiter struct {
	Bandwidth *Bucket `json:"bandwidth,omitempty"`
	Ops       *Bucket `json:"ops,omitempty"`
}

// Drive is a disk. Its guest finds the root device first, and the others in the order of their calls.
type Drive struct {
	ID       string   `json:"drive_id"` // letters, digits and _
	Root     bool     `json:"is_root_device"`
	Path     string   `json:"path_on_host"`
	ReadOnly bool     `json:"is_read_only,omitempty"`
	Cache    string   `json:"cache_type,omitempty"` // Unsafe, or Writeback: flushes of the guest are honoured
	Engine   string   `json:"io_engine,omitempty"`  // Sync or Async
	Limiter  *Limiter `json:"rate_limiter,omitempty"`
}

// DriveUpdate changes a Drive of a machine that runs.
type DriveUpdate struct {
	ID      string   `json:"drive_id"`
	Path    string   `json:"path_on_host,omitempty"`
	Limiter *Limiter `json:"rate_limiter,omitempty"`
}

// Pmem is a file as persistent memory, which the guest maps without a page cache of its own.
type Pmem struct {
	ID       string   `json:"id"`
	Path     string   `json:"path_on_host"`
	Root     bool     `json:"root_device,omitempty"`
	ReadOnly bool     `json:"read_only,omitempty"`
	Limiter  *Limiter `json:"rate_limiter,omitempty"`
}

// PmemUpdate changes the limits of a Pmem of a machine that runs.
type PmemUpdate struct {
	ID      string   `json:"id"`
	Limiter *Limiter `json:"rate_limiter,omitempty"`
}

// Network is a network device on a tap device of the host.
type Network struct {
	ID   string   `json:"iface_id"` // letters, digits and _
	Tap  string   `json:"host_dev_name"`
	MAC  string   `json:"guest_mac,omitempty"`
	MTU  int      `json:"mtu,omitempty"`
	Recv *Limiter `json:"rx_rate_limiter,omitempty"`
	Send *Limiter `json:"tx_rate_limiter,omitempty"`
}

// NetworkUpdate changes the limits of a Network of a machine that runs.
type NetworkUpdate struct {
	ID   string   `json:"iface_id"`
	Recv *Limiter `json:"rx_rate_limiter,omitempty"`
	Send *Limiter `json:"tx_rate_limiter,omitempty"`
}

// Vsock is the socket device: the host dials the guest through the unix socket at Path, and listens at Path_PORT.
type Vsock struct {
	CID  int    `json:"guest_cid"` // at least 3
	Path string `json:"uds_path"`
}

// MMDSConfig makes the metadata service reachable from network devices.
type MMDSConfig struct {
	Networks []string `json:"network_interfaces"`
	Version  string   `json:"version,omitempty"`      // V1 or V2; only V2 asks for a token
	Address  string   `json:"ipv4_address,omitempty"` // 169.254.x.y
}

// Balloon takes memory from a guest and gives it back.
type Balloon struct {
	MiB          int64 `json:"amount_mib"`
	DeflateOnOOM bool  `json:"deflate_on_oom"`
	StatsEvery   int   `json:"stats_polling_interval_s,omitempty"` // seconds; 0: none
	Hinting      bool  `json:"free_page_hinting,omitempty"`
	Reporting    bool  `json:"free_page_reporting,omitempty"`
}

// BalloonStats is what the guest says of its memory.
type BalloonStats struct {
	TargetMiB int64 `json:"target_mib"`
	ActualMiB int64 `json:"actual_mib"`
	Free      int64 `json:"free_memory"`      // bytes
	Total     int64 `json:"total_memory"`     // bytes
	Available int64 `json:"available_memory"` // bytes
	OOMKills  int64 `json:"oom_kill"`         // processes that the guest's kernel has killed for want of memory
}

// HintingStatus says how far the guest is with hinting at free pages.
type HintingStatus struct {
	Host  int64  `json:"host_cmd"`
	Guest *int64 `json:"guest_cmd"`
}

// Hotplug is memory that may be plugged while the machine runs.
type Hotplug struct {
	TotalMiB int64 `json:"total_size_mib,omitempty"`
	SlotMiB  int64 `json:"slot_size_mib,omitempty"`
	BlockMiB int64 `json:"block_size_mib,omitempty"`
}

// HotplugStatus is a Hotplug with what is plugged of it.
type HotplugStatus struct {
	Hotplug
	PluggedMiB   int64 `json:"plugged_size_mib"`
	RequestedMiB int64 `json:"requested_size_mib"`
}

// Logger is where the process writes its log: a file or pipe that exists.
type Logger struct {
	Path       string `json:"log_path"`
	Level      string `json:"level,omitempty"` // Error, Warning, Info, Debug, Trace or Off
	ShowLevel  bool   `json:"show_level,omitempty"`
	ShowOrigin bool   `json:"show_log_origin,omitempty"`
}

// SnapshotFiles are where CreateSnapshot writes a machine that is paused.
type SnapshotFiles struct {
	State  string `json:"snapshot_path"`
	Memory string `json:"mem_file_path"`
	Type   string `json:"snapshot_type,omitempty"` // Full or Diff
}

// SnapshotLoad makes a process that has no machine a snapshot's. If it fails, the process ends.
type SnapshotLoad struct {
	State    string            `json:"snapshot_path"`
	Memory   MemoryBackend     `json:"mem_backend"`
	Resume   bool              `json:"resume_vm,omitempty"`
	Networks []NetworkOverride `json:"network_overrides,omitempty"`
	Vsock    *VsockOverride    `json:"vsock_override,omitempty"`
	Realtime bool              `json:"clock_realtime,omitempty"` // the guest's clock goes on from the host's time
}

// MemoryBackend is where the memory of a snapshot is: a file, which is mapped privately and must never change.
type MemoryBackend struct {
	Type string `json:"backend_type"` // File or Uffd
	Path string `json:"backend_path"`
}

// NetworkOverride gives a network device of a snapshot another tap device.
type NetworkOverride struct {
	ID  string `json:"iface_id"`
	Tap string `json:"host_dev_name"`
}

// VsockOverride gives the socket device of a snapshot another path.
type VsockOverride struct {
	Path string `json:"uds_path"`
}
