package qemu_test

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/terraphim/tgr/vm"
)

// leave writes a canary to all places that a job of root can write to: files, memory, and the disks themselves.
const leave = `
import os, sys, glob, time, subprocess
canary = bytes.fromhex(sys.argv[1])
block = canary * 128  # 4 KiB
for path in ["/var/tmp/canary", "/tmp/canary", "/dev/shm/canary", "/home/runner/canary"]:
    with open(path, "wb") as f:
        f.write(block * 1024)
        f.flush()
        os.fsync(f.fileno())
for disk in glob.glob("/sys/block/vd*"):
    try:
        with open("/dev/" + os.path.basename(disk), "r+b", buffering=0) as f:
            f.seek(-4 << 20, os.SEEK_END) # where no file system has anything yet
            f.write(block * 256)
            os.fsync(f.fileno())
    except OSError as e:
        print("refused", os.path.basename(disk), e.strerror)
subprocess.Popen(["python3", "-c", "import sys, time; keep = bytes.fromhex(sys.argv[1]) * (1 << 20); time.sleep(100000)", sys.argv[1]],
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
time.sleep(2)
`

// scan looks for a canary on all disks and in all memory, as far as root sees them. It knows only how the canary begins and
// the hash of the rest, so that it does not find itself.
const scan = `
import glob, hashlib, json, os, struct, sys
begin, want = bytes.fromhex(sys.argv[1]), sys.argv[2]
def count(f, at, size):
    n, kept = 0, b""
    f.seek(at)
    while size > 0 and n < 2000:
        try:
            part = f.read(min(size, 4 << 20))
        except OSError:
            f.seek(at := at + (1 << 12)); size -= 1 << 12; kept = b""
            continue
        if not part:
            break
        at, size = at + len(part), size - len(part)
        text = kept + part
        i = text.find(begin)
        while i >= 0:
            rest = text[i + len(begin):i + 32]
            if len(rest) == 32 - len(begin) and hashlib.sha256(rest).hexdigest() == want:
                n += 1
                i = text.find(begin, i + 32)
            else:
                i = text.find(begin, i + 1)
        kept = text[-31:]
    return n
said = {"disks": 0, "memory": 0, "scanned_disks": 0, "scanned_memory": 0}
for disk in glob.glob("/sys/block/vd*"):
    size = int(open(disk + "/size").read()) * 512
    with open("/dev/" + os.path.basename(disk), "rb", buffering=0) as f:
        said["disks"] += count(f, 0, size)
    said["scanned_disks"] += size
with open("/proc/kcore", "rb", buffering=0) as f:
    header = f.read(64)
    offset, = struct.unpack_from("<Q", header, 32)
    each, many = struct.unpack_from("<HH", header, 54)
    f.seek(offset)
    table = f.read(each * many)
    for i in range(many):
        kind, _, at, address, _, size = struct.unpack_from("<IIQQQQ", table, i * each)
        if kind == 1 and 0xffff888000000000 <= address < 0xffffc88000000000 and size < 1 << 33:  # memory as it is, and not what is mapped elsewhere
            said["memory"] += count(f, at, size)
            said["scanned_memory"] += size
print(json.dumps(said))
`

// TestNothingIsLeft has a machine leave what the next one, of the same snapshot, would find if anything were shared or kept:
// on the disks as they are, in the memory, and in the files.
func TestNothingIsLeft(t *testing.T) {
	cfg, _ := warmConfig(t)
	p := warmed(t, cfg, vm.Spec{})
	canary := make([]byte, 32)
	rand.Read(canary)
	rest := sha256.Sum256(canary[8:])
	type report struct {
		Disks         int
		Memory        int
		ScannedDisks  int64 `json:"scanned_disks"`
		ScannedMemory int64 `json:"scanned_memory"`
	}
	look := func(id, before string) (r report) {
		m, c := start(t, p, id)
		if before != "" {
			if said := run(t, c, before); said == "" {
				t.Error("no disk refuses to be written: that of the image is one of all machines")
			}
		}
		said := run(t, c, fmt.Sprintf("python3 -c '%s' %s %s", scan, hex.EncodeToString(canary[:8]), hex.EncodeToString(rest[:])))
		if err := json.Unmarshal([]byte(said), &r); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		c.Close()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if r.ScannedDisks < cfg.Disk || r.ScannedMemory < cfg.Memory/2 {
			t.Errorf("%s: there were %d bytes of disks and %d of memory to look at", id, r.ScannedDisks, r.ScannedMemory)
		}
		return r
	}
	if r := look("leaves", fmt.Sprintf("python3 -c '%s' %s", leave, hex.EncodeToString(canary))); r.Disks < 1000 || r.Memory < 1000 {
		t.Fatalf("the machine itself does not find what it has left: %+v", r)
	}
	r := look("looks", "")
	if r.Disks+r.Memory > 0 {
		t.Errorf("the next machine finds what another has left: %+v", r)
	}
	t.Logf("looked at %d MiB of disks and %d of memory", r.ScannedDisks>>20, r.ScannedMemory>>20)
	nothingLeft(t, cfg.Journal)
}
