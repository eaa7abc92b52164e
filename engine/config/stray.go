package config

import (
	"regexp"
	"slices"
	"strings"
)

// otherVariables are those of the names INFINITE_* that are no settings, but that this program reads: for
// debugging and tuning, where to find libraries, and what an instance has of the process that started it.
var otherVariables = []string{
	"INFINITE_AWAKE_US", "INFINITE_CONFIG", "INFINITE_CUDA_LIBRARY", "INFINITE_CUDA_WITH", "INFINITE_CUDA_WITHOUT", "INFINITE_HALF_ROWS",
	"INFINITE_HEAD_FD", "INFINITE_NCCL_LIBRARY", "INFINITE_TP_DEADLINE_MS",
}

// Kubernetes tells every pod about each service; of those whose names begin with infinite these are the entries.
var ofKubernetes = regexp.MustCompile(`^INFINITE_(.*_)?(SERVICE_HOST|SERVICE_PORT|SERVICE_PORT_.*|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=|^INFINITE_(.*_)?PORT=[a-z]+://`)

// Stray tells whether an entry NAME=value of the environment has the name of a setting but is none, such as
// INFINITE_PROT=1: nobody will ever read it. Variables of tests are none of these.
func Stray(entry string) bool {
	name, _, _ := strings.Cut(entry, "=")
	if !strings.HasPrefix(name, "INFINITE_") || strings.HasPrefix(name, "INFINITE_TEST_") || slices.Contains(otherVariables, name) {
		return false
	}
	c := Default()
	isSetting := slices.ContainsFunc(Fields(&c), func(f Field) bool { return f.Env() == name })
	return !isSetting && !ofKubernetes.MatchString(entry)
}
