// Command tgr-guest is the agent inside a machine, and in a virtual machine also its init: guest.Main and
// nothing else. Build it with CGO_ENABLED=0.
package main

import (
	"os"

	"github.com/terraphim/tgr/guest"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(guest.Main(os.Args[1:], version, os.Stderr)) }
