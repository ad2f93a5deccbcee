"""UPnP: SSDP, SOAP, descriptions, and the actions of the Internet Gateway Device."""
