"""UPnP: SSDP, SOAP, description documents, and the actions of the Internet Gateway Device."""
