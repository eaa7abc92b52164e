package probe

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// function is one on the way of verbs messages through the kernel.
type function struct {
	name, does string
}

// functions lists those of the kernels that were looked at (6.1 to 6.12); a kernel has some of them. Soft-RoCE
// does a NIC's work in them. With an RDMA NIC messages do not enter the kernel at all, and only the calls that
// set things up show.
var functions = []function{
	{"ib_uverbs_write", "commands from user space, with Soft-RoCE also the bell of each post"},
	{"ib_uverbs_ioctl", "commands from user space, the newer kind"},
	{"ib_uverbs_post_send", "the bell of a post"},
	{"rxe_post_send", "Soft-RoCE takes note of posted work"},
	{"rxe_requester", "Soft-RoCE turns work into packets"},
	{"rxe_sender", "Soft-RoCE's sending task: packets and completions"},
	{"rxe_xmit_packet", "Soft-RoCE hands a packet to the network"},
	{"rxe_rcv", "Soft-RoCE gets a packet"},
	{"rxe_responder", "Soft-RoCE carries out what arrived"},
	{"rxe_receiver", "Soft-RoCE's receiving task"},
	{"rxe_completer", "Soft-RoCE completes what was acknowledged"},
	{"rxe_cq_post", "Soft-RoCE writes a completion"},
}

// modules are where functions can come from.
var modules = []string{"ib_uverbs", "rdma_rxe"}

// present says which of the names the symbol table (/proc/kallsyms) has.
func present(symbols io.Reader, want []function) (map[string]bool, error) {
	has := map[string]bool{}
	for _, f := range want {
		has[f.name] = false
	}
	lines := bufio.NewScanner(symbols)
	for lines.Scan() {
		// address, type, name, and for a module's [module]
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || fields[1] != "t" && fields[1] != "T" {
			continue
		}
		if _, ok := has[fields[2]]; ok {
			has[fields[2]] = true
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cannot read the kernel's symbols: %w", err)
	}
	return has, nil
}
